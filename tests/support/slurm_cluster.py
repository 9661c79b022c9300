"""A real Slurm on this machine: slurmctld and a slurmd for each of two virtual nodes, as root, with their own files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
JobRequeue=1
KillWait=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def why_not() -> str:
    """Why no Slurm can be started here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]} (Debian: slurm-wlm)"
    return "" if os.geteuid() == 0 else "Slurm's daemons want root here"


@dataclass
class Cluster:
    """A running Slurm; `environment` makes its commands find it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def call(
        self, *command: str, cwd: Path | None = None, extra: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            command, cwd=cwd, env={**self.environment, **(extra or {})}, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """Slurm's words on a job or a task of an array."""
        said = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in said.splitlines()[0].split() if "=" in word)

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def wait(self, job: str, timeout_s: float = 480) -> dict[str, str]:
        """Until the job has ended: its facts."""
        end = time.monotonic() + timeout_s
        while (facts := self.facts(job))["JobState"] not in ENDED:
            assert time.monotonic() < end, f"job {job} is still {facts['JobState']} ({facts.get('Reason')})"
            time.sleep(0.3)
        return facts


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons, wait until both nodes are idle; at the end cancel all jobs and end the daemons."""
    folder.mkdir(parents=True)
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, ports=free_ports(3)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    cluster = Cluster(folder, {**environment, "SLURM_CONF": str(conf)})
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            with (folder / "daemons.log").open("ab") as log:
                daemons.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
        wait_for_nodes(cluster, daemons)
        yield cluster
        subprocess.run(["scancel", "--user=root"], env=cluster.environment, timeout=30, check=False)
        time.sleep(1)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()


def free_ports(number: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def wait_for_nodes(cluster: Cluster, daemons: list[subprocess.Popen[bytes]], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while True:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=cluster.environment, capture_output=True, text=True,
                               timeout=30, check=False)  # fmt: skip
        if asked.stdout.split() == ["idle"]:
            return
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        assert not ended and time.monotonic() < end, f"{ended} ended; {(cluster.folder / 'daemons.log').read_text()}"
        time.sleep(0.3)
