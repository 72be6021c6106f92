"""What a probe is trained and judged on: prompts, a dataset's folder, its split."""
