"""In which precision a trained model is run and its features are compared."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Float32 products and convolutions in full precision, whatever is switched on (TF32, bf16 products, autocast).

    CUDA's convolutions use TF32 unless told not to. What was switched on before is again afterwards.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def forward_pass(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Where a model computes features: float32 means float32 indeed, another dtype autocasts."""
    return exact_products(device) if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
