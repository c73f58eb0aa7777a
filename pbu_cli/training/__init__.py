"""Data sets, fresh networks for them, and how originals are trained; for the benchmark alone."""
