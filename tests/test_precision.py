"""Low precision on a machine that computes it wrong: every program that would use it refuses, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reid.embedder import Embedder
from reid.precision import CHECKED_SHAPES, find_wrong_convolution
from tests.support.drawn import Drawn
from tests.support.programs import ROOT, Program
from tests.support.runs import make_run

CPU = torch.device("cpu")
CONVOLVE = nn.functional.conv2d


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    find_wrong_convolution.cache_clear()
    yield
    find_wrong_convolution.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sound_machine_is_not_refused(dtype: torch.dtype) -> None:
    assert find_wrong_convolution(CPU, dtype) is None


@pytest.mark.parametrize("bad_shape", [0, 1])
@pytest.mark.parametrize("damage", [lambda x: 1.06 * x, lambda x: x * torch.nan, lambda x: x * 1e37])
def test_either_convolution_shows_the_fault(
    monkeypatch: pytest.MonkeyPatch, bad_shape: int, damage: Callable[[Tensor], Tensor]
) -> None:
    def wrong(images: Tensor, weights: Tensor, **options: int) -> Tensor:
        result = CONVOLVE(images, weights, **options)
        hit = images.dtype == torch.bfloat16 and images.shape == CHECKED_SHAPES[bad_shape][0]
        return damage(result) if hit else result

    monkeypatch.setattr(nn.functional, "conv2d", wrong)
    assert find_wrong_convolution(CPU, torch.float16) is None
    message = find_wrong_convolution(CPU, torch.bfloat16)
    assert message is not None and "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16" in message and "precision no" in message


def test_an_embedder_is_refused(monkeypatch: pytest.MonkeyPatch, drawn: Drawn, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", drawn)

    def wrong(images: Tensor, weights: Tensor, **options: int) -> Tensor:
        result = CONVOLVE(images, weights, **options)
        return 2 * result if images.dtype == torch.bfloat16 else result

    monkeypatch.setattr(nn.functional, "conv2d", wrong)
    with pytest.raises(ValueError, match=r"dtype = 'bfloat16': .*self-check failed"):
        Embedder.load(run, device="cpu", dtype="bfloat16")


def make_bfloat16_wrong() -> None:
    """In the process of a program: the fault is there on any processor."""

    def wrong(images: Tensor, weights: Tensor, **options: int) -> Tensor:
        result = CONVOLVE(images, weights, **options)
        return 1.2 * result if images.dtype == torch.bfloat16 else result

    nn.functional.conv2d = wrong


def test_every_program_is_refused_with_one_line_and_writes_nothing(drawn: Drawn, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", drawn)
    before = sorted(tmp_path.rglob("*"))
    data = f"--data.root={drawn.root}"
    small = ["--config=configs/quickstart.yaml", data, "--batch.streams=2", "--batch.identities=4", "--track.wandb=off"]
    index = ["index", f"--checkpoint={run}", f"--images={drawn.raw}", f"--out={tmp_path / 'index'}"]
    programs = [
        (["train.py", *small, f"--runs={tmp_path}", "--name=new", "--precision=bf16"], 2),
        (["evaluate.py", f"--run={run}", f"--out={tmp_path / 'out'}", "--precision=bf16", "--wandb=off"], 1),
        (["reid.search", *index, "--dtype=bfloat16"], 1),
    ]
    for words, ranks in programs:
        status, said = Program(*words, ranks=ranks, prepare=make_bfloat16_wrong).end()
        (line,) = (line for line in said.splitlines() if "error: " in line)
        assert status == 2 and "Traceback" not in said, said
        assert "off by 20%): a self-check failed" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif("amx_tile" not in Path("/proc/cpuinfo").read_text(), reason="the processor has no AMX")
def test_the_documented_variable_fixes_amx() -> None:
    code = "import torch, reid.precision as p; print(p.find_wrong_convolution(torch.device('cpu'), torch.bfloat16))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stdout + done.stderr
