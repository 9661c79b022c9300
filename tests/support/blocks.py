"""Small blocks, so that a ranking of few images runs through many."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from reid.metrics import norms, ranking, rerank, scores
from reid.search import index


@contextlib.contextmanager
def block_sizes(**sizes: int) -> Iterator[None]:
    """Set block sizes such as GALLERY_BLOCK in every module of the metrics that uses them."""
    with contextlib.ExitStack() as stack:
        for name, size in sizes.items():
            modules = [module for module in (norms, ranking, rerank, scores, index) if hasattr(module, name)]
            assert modules, name
            for module in modules:
                stack.enter_context(mock.patch.object(module, name, size))
        yield
