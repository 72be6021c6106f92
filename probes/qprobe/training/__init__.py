"""From a dataset to a probe."""
