"""HTTP: what comes in, what goes out, and what is counted and logged of it."""
