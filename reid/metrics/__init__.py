"""Metrics of a ranking: CMC, mAP and mINP of queries against galleries of images or centroids."""

from reid.metrics.features import Features
from reid.metrics.protocols import COMPARES_WITH
from reid.metrics.ranking import top_k
from reid.metrics.retrieval import Result, evaluate, load_results, merge, missing_identities, save_results
from reid.metrics.scores import METRICS

__all__ = [
    "COMPARES_WITH",
    "METRICS",
    "Features",
    "Result",
    "evaluate",
    "load_results",
    "merge",
    "missing_identities",
    "save_results",
    "top_k",
]
