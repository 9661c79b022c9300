"""Job files and launch configs: well-formed, and each launched or, where that takes GPUs, its plan looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from wandb.sdk.lib.config_util import save_config_file_from_dict

from reid.config import Config, TrackConfig
from reid.runs.sweep_names import name_in_sweep
from tests.support.programs import ROOT, Program, free_port, launch

BIN = Path(sys.executable).parent
JOBS = sorted((ROOT / "slurm").glob("*.sbatch"))
TWO = ["--num_processes", "2"]
MEET = """
import os
from reid.distributed import gather_objects
from reid.distributed import start_accelerator
accelerator = start_accelerator("no", timeout_s=300)
ranks = gather_objects(int(os.environ["RANK"]) if "RANK" in os.environ else 0)
os.write(1, f"met {ranks}\\n".encode())  # at once: two processes share the pipe
accelerator.end_training()
"""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="ShellCheck is not installed (Debian: shellcheck)")
def test_job_files_are_shellcheck_clean() -> None:
    files = [*JOBS, *(ROOT / "slurm").glob("*.sh"), ROOT / ".ci" / "run"]
    checked = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_what_stops_and_goes_on_says_so_to_slurm(path: Path) -> None:
    """A signal with B: goes to the job's shell alone; without, it would end the launcher before the checkpoint."""
    lines = path.read_text().splitlines()
    again = {"#SBATCH --signal=B:USR1@120", "#SBATCH --requeue"}
    expected = again if path.stem in ("train", "sweep") else set()
    assert again & set(lines) == expected
    assert "#SBATCH --open-mode=append" in lines
    logs = "%A_%a" if path.stem == "sweep" else "%j"
    assert f"#SBATCH --output=slurm-%x-{logs}.log" in lines


@pytest.mark.parametrize(
    ("node", "gpus", "expected"),
    [
        (0, "4", "--num_machines 2 --machine_rank 0 --num_processes 8 --main_process_ip n1 --main_process_port 20007"),
        (1, "4", "--num_machines 2 --machine_rank 1 --num_processes 8 --main_process_ip n1 --main_process_port 20007"),
        (1, "", "--num_machines 2 --machine_rank 1 --num_processes 2 --main_process_ip n1 --main_process_port 20007"),
    ],
)
def test_a_node_starts_one_process_a_gpu(tmp_path: Path, node: int, gpus: str, expected: str) -> None:
    """slurm/node.sh with a stand-in for accelerate that prints what it was given."""
    stand_in = tmp_path / "accelerate"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    environment = {
        **os.environ, "BIN": str(tmp_path), "SLURM_NNODES": "2", "SLURM_NODEID": str(node), "MEETING_ADDRESS": "n1",
        "MEETING_PORT": "20007", "STOP_FILE": str(tmp_path / "stop"), "SLURM_GPUS_ON_NODE": gpus,
    }  # fmt: skip
    done = subprocess.run(["bash", "slurm/node.sh", "train.py", "--name", "a b"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and done.stdout.strip().endswith("train.py --name a b")
    assert "--multi_gpu" in done.stdout and "--config_file launch/node.yaml" in done.stdout


def test_a_node_alone_with_one_process_starts_it_without_a_launcher(tmp_path: Path) -> None:
    """A launcher of one process dies of SIGTERM at once, and Slurm takes the step for ended."""
    for name in ("accelerate", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "BIN": str(tmp_path), "SLURM_NNODES": "1", "SLURM_NODEID": "0",
                   "STOP_FILE": str(tmp_path / "stop"), "SLURM_GPUS_ON_NODE": "1"}  # fmt: skip
    done = subprocess.run(["bash", "slurm/node.sh", "train.py", "--name=a"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "python train.py --name=a\n"), done.stderr


def test_a_node_stages_every_folder(tmp_path: Path) -> None:
    """slurm/node.sh with stand-ins that print what they were given."""
    for name in ("accelerate", "python"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    folders = [tmp_path / "people" / "shards", tmp_path / "more people" / "shards"]
    for folder in folders:
        folder.mkdir(parents=True)
    environment = {
        **os.environ, "BIN": str(tmp_path), "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "STAGE": ":".join(map(str, folders)), "STOP_FILE": str(tmp_path / "stop"), "SLURM_GPUS_ON_NODE": "1",
        "LOCAL_SCRATCH": str(tmp_path),
    }  # fmt: skip
    for program, flag in (("train.py", "--data.root"), ("evaluate.py", "--data")):
        done = subprocess.run(["bash", "slurm/node.sh", program], cwd=ROOT, env=environment, capture_output=True,
                              text=True, check=True)  # fmt: skip
        *staged, started = done.stdout.splitlines()
        copies = [line.removeprefix(f"-m shards stage {folder} ") for line, folder in zip(staged, folders, strict=True)]
        assert started == f"{program} {flag}=[{','.join(copies)}]"
        assert len(set(copies)) == 2 and all(Path(copy).is_relative_to(tmp_path) for copy in copies)


def plan(*words: str):
    """What accelerate makes of a config file and flags: the arguments that it would start processes with."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "train.py"]))
    return arguments


def test_the_plan_of_one_gpu_and_of_one_node() -> None:
    one = plan("--config_file", str(ROOT / "launch" / "gpu.yaml"))
    assert (one.multi_gpu, one.num_processes, one.cpu) == (False, 1, False)
    node = plan("--config_file", str(ROOT / "launch" / "node.yaml"))
    assert (node.multi_gpu, node.num_processes, node.num_machines, node.mixed_precision) == (True, 8, 1, "no")
    prepare_multi_gpu_env(node)
    assert node.nproc_per_node == "8" and int(node.master_port) > 0
    assert plan("--config_file", str(ROOT / "launch" / "node.yaml"), "--num_processes", "4").num_processes == 4


@pytest.mark.parametrize("machine", [0, 1])
def test_the_plan_of_two_nodes(machine: int) -> None:
    port = str(free_port())
    words = ["--machine_rank", str(machine), "--main_process_ip", "10.0.0.1", "--main_process_port", port]
    nodes = plan("--config_file", str(ROOT / "launch" / "multinode.yaml"), *words)
    prepare_multi_gpu_env(nodes)
    assert (nodes.nnodes, nodes.nproc_per_node, nodes.node_rank) == ("2", "8", machine)
    assert (nodes.rdzv_endpoint, nodes.rdzv_backend) == (f"10.0.0.1:{port}", "static")


def start(tmp_path: Path, *words: str) -> Program:
    script = tmp_path / "meet.py"
    script.write_text(MEET)
    return launch(*words, str(script))


# launch/cpu.yaml: tests/training/test_failures.py
@pytest.mark.parametrize(("file", "words", "ranks"), [("gpu.yaml", [], "[0]"), ("node.yaml", TWO, "[0, 1]")])
def test_configs_of_one_machine_launch(tmp_path: Path, file: str, words: list[str], ranks: str) -> None:
    """On the CPU where there is no GPU, as the programs do."""
    _, said = start(tmp_path, "--config_file", str(ROOT / "launch" / file), *words).end()
    assert said.count(f"met {ranks}") == ranks.count(",") + 1, said


def test_the_config_of_two_nodes_launches(tmp_path: Path) -> None:
    """Two launchers on one machine, each in the place of a node."""
    words = ["--config_file", str(ROOT / "launch" / "multinode.yaml"), *TWO, "--main_process_ip", "127.0.0.1",
             "--main_process_port", str(free_port())]  # fmt: skip
    for node in [start(tmp_path, *words, "--machine_rank", str(machine)) for machine in (0, 1)]:
        _, said = node.end()
        assert "met [0, 1]" in said, said


def test_runs_of_an_agent_have_folders_of_their_own_and_names_of_their_knobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's file of knobs is written by W&B's own function."""

    def named(**knobs: str) -> tuple[str, str, str]:
        config = Config(name="quickstart")
        config.track = TrackConfig(**knobs)
        name_in_sweep(config)
        return config.name, config.track.name, config.track.group

    monkeypatch.setenv("WANDB_RUN_ID", "ab12")
    assert named() == ("quickstart", "", "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for path in (tmp_path / "missing.yaml", tmp_path):
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
        assert named() == ("quickstart-ab12", "", "s1")
    chosen = {"loss.margin": {"value": 5.0}, "loss.w1": {"value": 0.1}, "seed": {"value": 0}}
    save_config_file_from_dict(str(tmp_path / "knobs.yaml"), chosen)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "knobs.yaml"))
    assert named() == ("quickstart-ab12", "m5-w0.1-s0", "s1")
    assert named(name="mine", group="ours") == ("quickstart-ab12", "mine", "ours")
