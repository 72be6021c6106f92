"""What runs inside vLLM's workers, where the hidden states are."""
