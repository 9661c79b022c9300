"""A run on disk: its folder, its checkpoints, their models, and its log."""
