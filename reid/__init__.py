"""Training and evaluation for person re-identification with the modified centroid triplet loss."""

__version__ = "0.1.0"
