"""The page at ``/playground``."""
