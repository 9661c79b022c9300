"""The precision in which a model runs and features are compared, and a check that this machine computes it right."""

import contextlib
import socket
from collections.abc import Iterator
from functools import cache

import torch
from torch.nn import functional as F

AUTOCAST_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the knob `precision`

TOLERANCE = 0.05  # of the largest value; a correct bfloat16 result differs by less than 0.01
# Shapes of (images, weights), for stride 2. On CPUs with AMX, oneDNN 3.13 always computes both wrong in bfloat16.
# The fault was seen only if the output is one column wide and more than one row high.
CHECKED_SHAPES = (((1, 256, 4, 2), (512, 256, 3, 3)), ((2, 16, 16, 2), (128, 16, 3, 3)))


def find_device(name: str) -> torch.device:
    """Return a device that can be used: auto (CUDA if there is one), or any of torch's names.

    Raises:
        ValueError: torch cannot use it.
    """
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device = {name!r}: {str(error).splitlines()[0]}; use auto, cpu or cuda") from error
    return device


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Compute float32 products and convolutions in full precision: no TF32 (CUDA's default), bf16 or autocast.

    The settings from before are restored afterwards.
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
    """Return the context in which a model computes features: full float32, or autocast to another dtype."""
    return exact_products(device) if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@cache
def find_wrong_convolution(device: torch.device, dtype: torch.dtype) -> str | None:
    """Compare convolutions in a low precision with float64 results of the same values, once per process.

    Args:
        device: where the model will run.
        dtype: bfloat16 or float16. float32 is not checked.

    Returns:
        An error message that contains the fix, or None if all results are correct.
    """
    if dtype == torch.float32:
        return None
    generator = torch.Generator().manual_seed(0)
    for image_shape, weight_shape in CHECKED_SHAPES:
        images = torch.randn(image_shape, generator=generator).to(dtype)
        weights = torch.randn(weight_shape, generator=generator).to(dtype)
        expected = F.conv2d(images.double(), weights.double(), stride=2, padding=1)
        try:
            computed = F.conv2d(images.to(device), weights.to(device), stride=2, padding=1).cpu().double()
        except RuntimeError as failure:
            found = f"not possible ({str(failure).splitlines()[0]})"
        else:
            error = float((computed - expected).abs().max() / expected.abs().max())
            if error <= TOLERANCE:  # never true of NaN
                continue
            found = f"wrong ({f'off by {error:.0%}' if error < 100 else 'not finite or far too large'})"
        where = f"{str(dtype).removeprefix('torch.')} convolutions on the {device.type} of {socket.gethostname()}"
        fix = "compute in float32 (precision no, dtype float32)"
        if device.type == "cpu":
            fix = f"set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment before the program starts, or {fix}"
        return f"{where} are {found}: a self-check failed; {fix}"
    return None
