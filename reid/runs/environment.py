"""The environment of a run: code, versions and machine, for logs and for the comparison of ranks."""

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

PRODUCT = "mctl-reid"
PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "wandb", "numpy")
SOURCE = Path(__file__).parents[1]


def describe_environment() -> dict[str, str]:
    """Return versions and machine of this process, and the job's id; other variables may be secret."""
    found = {"code": code_version(), "commit": git_commit(), "python": platform.python_version(),
             "host": socket.gethostname(), "platform": platform.platform()}  # fmt: skip
    found |= {name: version_of(name) for name in PACKAGES}
    found["cuda"] = torch.version.cuda or "none"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if job := os.environ.get("SLURM_JOB_ID"):
        found["slurm_job"] = job
    return found


def version_of(package: str) -> str:
    """Return the installed version, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def code_version() -> str:
    """Return the version and a hash of the source files on this disk."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{version_of(PRODUCT)} {digest.hexdigest()[:12]}"


@cache
def git_commit() -> str:
    """Return the commit of the checkout that the code runs from, with `+` if files differ; "" outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    return commit + ("+" if commit and _git("status", "--porcelain", "--", ".") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", SOURCE, *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
