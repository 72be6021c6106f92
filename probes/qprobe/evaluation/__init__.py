"""What a way of choosing is worth on a dataset, and how sure that is."""
