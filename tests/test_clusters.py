"""Job files and sweeps: well-formed, and made of knobs that exist."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from reid.config import Config, make_parser
from reid.tracking import name_in_sweep

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
JOBS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="ShellCheck is not installed (Debian: shellcheck)")
def test_job_files_are_shellcheck_clean() -> None:
    files = [*JOBS, ROOT / "slurm" / "launch.sh", ROOT / ".ci" / "run"]
    checked = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("job", "gpus", "expected"),
    [
        ("train", "4", "--num_processes 4 --multi_gpu train.py --resume=auto --name a b"),
        ("train", "", "--num_processes 1 train.py --resume=auto --name a b"),
        ("evaluate", "2", "--num_processes 2 --multi_gpu evaluate.py --name a b"),
    ],
)
def test_a_job_starts_one_process_a_gpu(tmp_path: Path, job: str, gpus: str, expected: str) -> None:
    """The job file run by bash, with a stand-in for srun that prints what it was given."""
    stand_in = tmp_path / "srun"
    stand_in.write_text('#!/bin/sh\nshift 2\necho "$@"\n')
    stand_in.chmod(0o755)
    accelerate = tmp_path / "repo" / ".venv" / "bin" / "accelerate"
    accelerate.parent.mkdir(parents=True)
    accelerate.touch(mode=0o755)
    (tmp_path / "repo" / "slurm").symlink_to(ROOT / "slurm")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path / "repo"), "SLURM_JOB_ID": "7"}
    if gpus:
        environment["SLURM_GPUS_ON_NODE"] = gpus
    done = subprocess.run(
        ["bash", ROOT / "slurm" / f"{job}.sbatch", "--name", "a b"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(expected)
    assert "--main_process_port 20007" in done.stdout


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_sweep_varies_knobs_that_exist(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "eval/best_mAP", "goal": "maximize"}
    flags = [f"--{name}={values['values'][-1]}" for name, values in sweep["parameters"].items()]
    command = sweep["command"]
    fixed = [word for word in command[command.index("train.py") + 1 :] if word != "${args}"]
    assert "${args}" in command and (ROOT / command[command.index("--config_file") + 1]).is_file()
    parsed = make_parser(Config).parse_args([*fixed, *flags])
    assert parsed.loss.w1 == sweep["parameters"]["loss.w1"]["values"][-1]


def test_runs_of_a_sweep_do_not_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "ab12")
    assert name_in_sweep("quickstart") == "quickstart"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert name_in_sweep("quickstart") == "quickstart-ab12"
