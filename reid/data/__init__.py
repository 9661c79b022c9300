"""Shards, the plan of batches, and the loaders that read them."""
