"""A probe: its network, its file, the resampling rule, and when candidates are dropped."""
