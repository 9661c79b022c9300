"""The trainer beside a bare loop (the same model and objective on a batch in memory), and what it becomes on many GPUs.

python -m tests.bench.trainer                   eight minutes on two cores: ResNet-18, 128 x 64, one and two processes
python -m tests.bench.trainer --device cuda     one GPU: ResNet-50, 256 x 128, batches of 64, 256 and 512
python -m tests.bench.trainer --compute_ms 21   the scaling model alone, of a step measured elsewhere
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from reid.config import LossConfig, OptimConfig
from reid.data.images import Pixels
from reid.data.normalization import Normalization
from reid.losses.gather import find_layout
from reid.losses.objective import Objective
from reid.training.optim import build_optimizer
from shards.__main__ import main as shards_main
from tests.support.models import make_model

K, CLASSES, ROUNDS = 4, 80, 2
SMALL = {"encoder": "resnet18", "height": 128, "width": 64}
LARGE = {"encoder": "resnet50", "height": 256, "width": 128}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 FLOP/s of the data sheets
ROOT = Path(__file__).parents[2]
LAUNCH = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(ROOT / "launch/cpu.yaml")]


def make_shards(folder: Path, identities: int = CLASSES, height: int = 128, width: int = 64) -> Path:
    sizes = ["--identities-train", str(identities), "--identities-test=2", "--images-per-identity=8", "--distractors=0"]
    built = ["--root", str(folder / "drawn"), "--out", str(folder / "shards"), "--shards=8"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shards_main(["synth", "--out", str(folder / "drawn"), *sizes, f"--height={height}", f"--width={width}"])
        shards_main(["build", "market1501", *built])
    return folder / "shards"


def bare_loop(
    encoder: str, height: int, width: int, batch: int, steps: int = 12, warmup: int = 2, *, device: str = "cpu",
    ours: bool = False, compiled: bool = False, classes: int = CLASSES,
) -> float:  # fmt: skip
    """Images a second. ours: bf16 and channels_last; otherwise float32 as torch runs it without being told more."""
    torch.manual_seed(0)
    layout = torch.channels_last if ours else torch.contiguous_format
    model = make_model(classes, encoder, image_size=(height, width)).to(device).to(memory_format=layout)
    objective = Objective(LossConfig(), classes, model.dim).to(device)
    optimizer = build_optimizer(model, OptimConfig())
    if compiled:
        model.compile()
        objective.compile(fullgraph=True, dynamic=True)
    images = Normalization().apply(torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=device))
    labels = torch.arange(batch // K, device=device).repeat_interleave(K)
    rows = find_layout(labels)
    images = images.contiguous(memory_format=layout)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(images, 0)  # as the trainer does, so that one graph serves all sizes
    torch.backends.cudnn.benchmark = True
    for step in range(warmup + steps):
        if step == warmup:
            float(labels.sum())  # waits for all that was queued before
            begun = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=ours):
            outputs = model(images)
        losses = objective(*outputs, labels, rows)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.update_centers(losses)
    float(labels.sum())
    return steps * batch / (time.perf_counter() - begun)


def trainer(
    shards: Path, runs: Path, name: str, batch: int, knobs: list[str], encoder: str, height: int, width: int,
    processes: int = 1, steps: int = 12, warmup: int = 2, streams: int = 4,
) -> tuple[float, float]:  # fmt: skip
    """Images a second of all processes and the share of time spent waiting for data, without the first steps."""
    start = [sys.executable] if processes == 1 else [*LAUNCH, "--main_process_port", "0"]
    flags = [
        f"--data.root={shards}", f"--data.height={height}", f"--data.width={width}", f"--batch.streams={streams}",
        f"--batch.identities={batch * processes // K}", f"--batch.steps_per_epoch={warmup + steps}",
        f"--model.encoder={encoder}", "--model.weights=none", "--optim.epochs=1",
        "--optim.milestones=[]", "--track.wandb=off", "--track.every_steps=2", f"--runs={runs}", f"--name={name}",
    ]  # fmt: skip
    subprocess.run([*start, "train.py", *flags, *knobs], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                   capture_output=True, check=True, timeout=600, text=True)  # fmt: skip
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    after = [line for line in lines if "train/images_per_s" in line and line["step"] >= warmup]
    return tuple(statistics.mean(line[f"train/{key}"] for line in after) for key in ("images_per_s", "data_wait_share"))


def on_cpu() -> float:
    """Seconds of a step of 64 images of the large model."""
    torch.set_num_threads(1)
    print("## Trainer\n\nResNet-18, 128 x 64, 8 x 4 images a process, one thread a process.\n")
    print("| round | bare, images/s | trainer, 1 process | share of bare | waiting for data | 2 processes | of 1 |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    shares, scalings, knobs = [], [], ["--data.workers=1", "--device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder))
        for number in range(ROUNDS):
            bare = bare_loop(**SMALL, batch=32)
            one, waiting = trainer(shards, Path(folder), f"one{number}", 32, knobs, **SMALL)
            bare = (bare + bare_loop(**SMALL, batch=32)) / 2  # before and after, as the machine's speed drifts
            two, _ = trainer(shards, Path(folder), f"two{number}", 32, knobs, **SMALL, processes=2)
            shares, scalings = [*shares, one / bare], [*scalings, two / one]
            print(f"| {number + 1} | {bare:.1f} | {one:.1f} | {shares[-1]:.0%} | {waiting:.1%} | {two:.1f} "
                  f"| {scalings[-1]:.2f}x |", flush=True)  # fmt: skip
    print(f"\nMedian: {statistics.median(shares):.0%} of bare; two processes {statistics.median(scalings):.2f}x one.")
    return 64 / bare_loop(**LARGE, batch=8, steps=2, warmup=1)


MODES = {  # of a GPU: knobs of the trainer, options of the bare loop
    "fp32, eager": (["--precision=no", "--speed.channels_last=false"], {}),
    "bf16": (["--precision=bf16"], {"ours": True}),
    "bf16, compiled": (["--precision=bf16", "--speed.compile=true"], {"ours": True, "compiled": True}),
}


def on_cuda(
    batches: Sequence[int] = (64, 256, 512), steps: int = 30, warmup: int = 10, limit_s: int = 390
) -> Iterator[dict[str, Any]]:
    """Yield a row for each batch and mode, printed as a line of a table. A failure is a row with its reason.

    Rows that would begin after `limit_s` seconds are left out.
    """
    begun, identities = time.perf_counter(), max(batches) // K + 32
    card, flops = torch.cuda.get_device_name(), flops_per_image()
    peak = next((value for name, value in PEAKS.items() if name in card), math.nan)
    print(f"ResNet-50, 256 x 128, last stride 1, {flops / 1e9:.1f} GFLOP an image forward and backward.\n")
    print("| batch | mode | bare loop, images/s | trainer, images/s | share of bare | waiting for data | MFU |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), identities=identities, height=256, width=128)
        for mode, (knobs, options) in MODES.items():
            for batch in batches:
                if time.perf_counter() - begun > limit_s:
                    print(f"| {batch} | {mode} | left out: {limit_s} s are over | | | | |", flush=True)
                    continue
                shape = {**LARGE, "batch": batch, "steps": steps, "warmup": warmup}
                row: dict[str, Any] = {"batch": batch, "mode": mode}
                try:
                    bare = bare_loop(**shape, device="cuda", classes=identities, **options)
                    torch.cuda.empty_cache()
                    name = f"{batch}-{mode}".replace(", ", "-")
                    workers = f"--data.workers={min(8, max(1, (os.cpu_count() or 2) - 2))}"
                    found, waiting = trainer(
                        shards, Path(folder), name, knobs=["--device=cuda", workers, *knobs], streams=8, **shape
                    )
                except Exception as error:  # out of memory, no compiler: the other rows count
                    reason = getattr(error, "stderr", None) or str(error)
                    row["error"] = str(reason).strip().splitlines()[-1][:200]
                    print(f"| {batch} | {mode} | failed: {row['error']} | | | | |", flush=True)
                else:
                    row |= {"bare": bare, "trainer": found, "waiting": waiting, "mfu": found * flops / peak}
                    print(f"| {batch} | {mode} | {bare:.0f} | {found:.0f} | {found / bare:.0%} | {waiting:.1%} "
                          f"| {row['mfu']:.0%} |", flush=True)  # fmt: skip
                yield row


def flops_per_image() -> float:
    model, images = make_model(CLASSES, "resnet50"), torch.zeros(2, 3, 256, 128)
    with FlopCounterMode(display=False) as counter:
        model(images)[1].sum().backward()
    return counter.get_total_flops() / 2


def decoded_per_s(count: int = 300) -> float:
    Image.effect_noise((64, 128), 64).convert("RGB").save(file := io.BytesIO(), "JPEG")
    return count / timeit.timeit(lambda: Pixels(256, 128).decode(file.getvalue(), "bench"), number=count)


def print_scaling(compute_s: float, source: str) -> None:
    """16 identities x 4 images a GPU: step = max(compute + exposed all-reduce + centroid gather, data)."""
    model = make_model(751, "resnet50")
    decoding, cores, latency_s, bucket = decoded_per_s(), 12, 2e-5, 25 * 2**20
    gradients, centroids = 4 * sum(parameter.numel() for parameter in model.parameters()), 4 * 16 * model.dim
    data_s = 64 / (decoding * cores)
    print(f"""
## Scaling model, ResNet-50, 64 images a GPU

- compute: {1000 * compute_s:,.1f} ms a step ({source})
- data: {decoding:,.0f} images/s a core, measured here on one core; assumed {cores} cores a GPU: {1000 * data_s:.1f} ms
- gradients: {gradients / 2**20:.0f} MiB, 2 (N - 1) / N of them sent behind 2/3 of the compute, but for the last 25 MiB
- centroids: 16 x {model.dim} floats a GPU, {centroids / 2**10:.0f} KiB, gathered and, backward, scattered; not hidden
- assumed: 300 GB/s between the 8 GPUs of a node, 40 GB/s a GPU between nodes, 20 us and 2 us x log2 N a collective
- left out: stragglers, BatchNorm of the whole batch, storage (shards are staged on the nodes)

| GPUs | all-reduce, ms | of it exposed | centroid gather, ms | step, ms | images/s | efficiency |
|---|---|---|---|---|---|---|""")
    for gpus in (1, 8, 64, 512):
        bandwidth = 300e9 if gpus <= 8 else 40e9
        collective = latency_s + 2e-6 * math.log2(gpus) if gpus > 1 else 0.0
        reduce_s = 2 * (gpus - 1) / gpus * gradients / bandwidth + collective
        exposed = max(reduce_s - compute_s * 2 / 3, reduce_s * min(bucket / gradients, 1))
        gather_s = 2 * (gpus - 1) * centroids / bandwidth + 4 * collective  # and sizes and keys, which are small
        step_s = max(compute_s + exposed + gather_s, data_s)
        print(f"| {gpus} | {1000 * reduce_s:.2f} | {1000 * exposed:.2f} | {1000 * gather_s:.2f} | {1000 * step_s:,.1f} "
              f"| {64 * gpus / step_s:,.0f} | {max(compute_s, data_s) / step_s:.0%} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compute_ms", type=float)
    options = parser.parse_args()
    if options.compute_ms is not None:
        print_scaling(options.compute_ms / 1000, "given")
    elif options.device == "cuda":
        rows = list(on_cuda())
        print_scaling(64 / next(row["bare"] for row in rows if row["mode"] == "bf16"), "the bare loop in bf16 above")
    else:
        print_scaling(on_cpu(), "measured on one core of this CPU, so efficiencies say nothing of GPUs: --compute_ms")


if __name__ == "__main__":
    main()
