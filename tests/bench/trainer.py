"""The trainer beside a bare loop: the same model and objective on a batch in memory, forward, backward and step.

python -m tests.bench.trainer          prints Markdown tables; about four minutes on two cores
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from reid.augment import normalize
from reid.model import ReIDModel
from reid.objective import Objective
from reid.optim import build_optimizer
from shards.__main__ import main as shards_main

HEIGHT, WIDTH, P, K, CLASSES = 128, 64, 8, 4, 48
STEPS, ROUNDS = 12, 2
ROOT = Path(__file__).parents[2]
LAUNCH = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(ROOT / "launch/cpu.yaml")]


def make_shards(folder: Path) -> Path:
    sizes = ["--identities-train", str(CLASSES), "--identities-test=2", "--images-per-identity=8", "--distractors=0"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shards_main(["synth", "--out", str(folder / "drawn"), *sizes, f"--height={HEIGHT}", f"--width={WIDTH}"])
        built = ["--root", str(folder / "drawn"), "--out", str(folder / "shards"), "--shards=8"]
        shards_main(["build", "market1501", *built])
    return folder / "shards"


def bare_loop() -> float:
    """Images a second."""
    torch.manual_seed(0)
    model = ReIDModel(CLASSES, "resnet18", image_size=(HEIGHT, WIDTH))
    objective = Objective(CLASSES, model.dim, margin=5.0)
    optimizer = build_optimizer(model, 3.5e-4, 5e-4)
    images = normalize(torch.randint(0, 256, (P * K, 3, HEIGHT, WIDTH), dtype=torch.uint8))
    labels = torch.arange(P).repeat_interleave(K)
    for step in range(2 + STEPS):
        if step == 2:
            begun = time.perf_counter()
        features, logits = model(images)
        total, _ = objective(features, logits, labels)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.update_centers(features, labels)
    return STEPS * P * K / (time.perf_counter() - begun)


def trainer(shards: Path, runs: Path, name: str, processes: int) -> tuple[float, float]:
    """Images a second of all processes and the share of time spent waiting for data, without the first steps."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = [sys.executable] if processes == 1 else [*LAUNCH, "--main_process_port", str(port)]
    flags = [
        f"--data.root={shards}", f"--data.height={HEIGHT}", f"--data.width={WIDTH}", "--data.workers=1",
        f"--batch.identities={P * processes}", "--batch.streams=4", f"--batch.steps_per_epoch={2 + STEPS}",
        "--model.encoder=resnet18", "--model.weights=none", "--loss.margin=5.0", "--optim.epochs=1",
        "--optim.milestones=[]", "--track.wandb=off", "--track.every_steps=2", f"--runs={runs}", f"--name={name}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*start, "train.py", *flags], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=300
    )
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    after = [line for line in lines if "train/images_per_s" in line][1:]
    return tuple(statistics.mean(line[f"train/{key}"] for line in after) for key in ("images_per_s", "data_wait_share"))


def main() -> None:
    torch.set_num_threads(1)
    print(f"## Trainer\n\nResNet-18, {HEIGHT} x {WIDTH}, {P} x {K} images a process, one thread a process.\n")
    print(
        "| round | bare loop, images/s | trainer, 1 process | share of bare | waiting for data | 2 processes | of 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    shares, scalings = [], []
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder))
        for number in range(ROUNDS):
            bare = bare_loop()
            one, waiting = trainer(shards, Path(folder), f"one{number}", 1)
            bare = (bare + bare_loop()) / 2  # before and after, as the machine's speed drifts
            two, _ = trainer(shards, Path(folder), f"two{number}", 2)
            shares.append(one / bare)
            scalings.append(two / one)
            print(f"| {number + 1} | {bare:.1f} | {one:.1f} | {shares[-1]:.0%} | {waiting:.1%} | {two:.1f} "
                  f"| {scalings[-1]:.2f}x |", flush=True)  # fmt: skip
    share, scaling = statistics.median(shares), statistics.median(scalings)
    print(f"\nMedian: {share:.0%} of the bare loop; two processes {scaling:.2f}x one.")


if __name__ == "__main__":
    main()
