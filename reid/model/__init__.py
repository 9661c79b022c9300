"""The network, its encoders and their weights."""
