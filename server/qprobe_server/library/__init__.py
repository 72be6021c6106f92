"""The probes that are served, and how they come and go."""
