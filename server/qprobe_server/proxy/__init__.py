"""Reranks what another server samples: a reverse proxy that reads what has been written."""
