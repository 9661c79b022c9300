"""Tests that need a GPU: skipped without one, run alone by `make bench-gpu` (pytest -m cuda)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

_skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def needs_cuda(test: Callable[..., Any]) -> Callable[..., Any]:
    return pytest.mark.cuda(_skip(test))
