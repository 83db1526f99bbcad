"""Preparing training data: pictures and captions into shards, latents and token ids beside them."""
