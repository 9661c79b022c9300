"""Search pictures by a trained model: an index on disk, and queries against it."""

GALLERIES = ("images", "centroids")  # what a query may be compared with; here, so that the parser needs no torch
