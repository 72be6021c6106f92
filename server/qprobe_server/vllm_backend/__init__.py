"""Everything that touches vLLM. Written against vLLM 0.32.0; ``checks`` refuses any other.

Nothing else in this project imports vllm; what leaves this package are our own types.
"""
