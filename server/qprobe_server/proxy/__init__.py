"""Reranks what another server samples: a reverse proxy that reads completions once they are there."""
