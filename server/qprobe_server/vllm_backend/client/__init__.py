"""What runs in the API server, around vLLM's engine client."""
