"""Training data: the shard format, the exact and elastic order of samples, and batches of it."""
