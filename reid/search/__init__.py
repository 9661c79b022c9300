"""Search pictures by a trained model: an index on disk, and queries against it."""
