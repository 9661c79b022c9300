"""What a run was made with: code, versions, machines; and that all its processes have the same code and data."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from reid import __version__
from reid.distributed import gather_objects

PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "wandb", "numpy")
SOURCE = Path(__file__).parent


def describe_environment() -> dict[str, str]:
    """Versions and places of this process, for a tracker; of environment variables the job's id alone (secrets)."""
    found = {"code": code_version(), "commit": git_commit(), "python": platform.python_version(),
             "host": socket.gethostname(), "platform": platform.platform()}  # fmt: skip
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    found["cuda"] = torch.version.cuda or "none"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if job := os.environ.get("SLURM_JOB_ID"):
        found["slurm_job"] = job
    return found


@cache
def code_version() -> str:
    """The version and a hash of the source as it is on disk here, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__} {digest.hexdigest()[:12]}"


@cache
def git_commit() -> str:
    """The commit of the checkout that the code runs from, with `+` where files differ from it; "" outside of one."""
    commit = _git("rev-parse", "HEAD")
    return commit + ("+" if commit and _git("status", "--porcelain", "--", ".") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", SOURCE, *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_same_everywhere(code: str, data: str) -> list[str]:
    """Collective. The hosts of the job, each once; ValueError on every rank where code or data differ between ranks.

    code: `code_version()`; data: the manifest's fingerprint. A node with an old copy of either trains something else.
    """
    seen = gather_objects((socket.gethostname(), code, data))
    mends = {"code": "install or copy the same version everywhere", "data": "stage or copy the same shards everywhere"}
    for place, (what, mend) in enumerate(mends.items(), start=1):
        groups: dict[str, list[int]] = {}
        for rank, facts in enumerate(seen):
            groups.setdefault(facts[place], []).append(rank)
        if len(groups) > 1:
            usual = max(groups.values(), key=len)
            others = {value: ranks for value, ranks in groups.items() if ranks is not usual}
            named = "; ".join(
                f"{_name_ranks(ranks)} ({', '.join(sorted({seen[rank][0] for rank in ranks}))}): {value[:24]}"
                for value, ranks in others.items()
            )
            raise ValueError(
                f"the processes of this run have different {what}: {_name_ranks(usual)}: {seen[usual[0]][place][:24]}, "
                f"but {named}; {mend}"
            )
    return sorted({host for host, _, _ in seen})


def _name_ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
