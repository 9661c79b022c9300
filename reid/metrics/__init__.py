"""Metrics of a ranking: CMC, mAP and mINP of queries against galleries of images or centroids."""

from reid.metrics.features import Features
from reid.metrics.protocols import PROTOCOLS
from reid.metrics.ranking import top_k
from reid.metrics.retrieval import Result, evaluate, load_results, merge, save_results

__all__ = ["PROTOCOLS", "Features", "Result", "evaluate", "load_results", "merge", "save_results", "top_k"]
