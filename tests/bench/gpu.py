"""Every test and measurement that needs a GPU, in one command of at most ten minutes.

make bench-gpu        prints Markdown tables; results also as JSON in bench-gpu.json

A part that fails is reported, and the others run.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bench import ranking, step, trainer

TEST_S = 240  # seconds for the tests
ROOT = Path(__file__).parents[2]


def describe_machine() -> dict[str, str]:
    def ask(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    return {
        "device": torch.cuda.get_device_name(),
        "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": platform.python_version(),
        "commit": ask("git", "describe", "--always", "--dirty"),
    }


def run_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-v", "--no-header", "tests"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TEST_S)
    print(run.stdout[-4000:], flush=True)
    if run.returncode:
        raise RuntimeError(f"pytest ended with status {run.returncode}: {run.stderr[-500:]}")
    return {"summary": run.stdout.strip().splitlines()[-1]}


def measure_trainer() -> list[dict[str, Any]]:
    return list(trainer.on_cuda())


def measure_ranking() -> list[dict[str, Any]]:
    return list(ranking.print_ranking("cuda"))


def measure_reranking() -> list[dict[str, Any]]:
    return list(ranking.print_reranking("cuda"))


PARTS: dict[str, Callable[[], Any]] = {
    "tests": run_tests, "trainer": measure_trainer, "ranking": measure_ranking, "re-ranking": measure_reranking,
    "step": step.main,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"), help="file for the results")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; several are possible")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: torch finds no CUDA device here, so there is nothing to measure")
    results: dict[str, Any] = {"machine": describe_machine()}
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()), flush=True)
    for name in options.only or PARTS:
        print(f"\n## {name}\n", flush=True)
        begun = time.perf_counter()
        try:
            found: Any = PARTS[name]()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
            print(f"failed: {found['error']}", flush=True)
        results[name] = {"seconds": round(time.perf_counter() - begun, 1), "results": found}
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nresults also in {options.json}")


if __name__ == "__main__":
    main()
