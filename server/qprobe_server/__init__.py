"""The qprobe server: vLLM's own OpenAI-compatible server, with answers reranked by probes."""
