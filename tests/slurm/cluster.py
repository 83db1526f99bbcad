"""A real Slurm on one machine, without systemd: munged, slurmctld, and a slurmd a node."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmctldDebug=info
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/jobs.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdTimeout=5
SlurmctldTimeout=10
InactiveLimit=0
KillWait=15
MinJobAge=600
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=train Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


@dataclass(frozen=True)
class Node:
    """What a node claims to have; GPUs are device files that are /dev/null by another name."""

    cpus: int = 8
    gpus: int = 2
    megabytes: int = 4000


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in NEEDED if not shutil.which(name, path=_path())]
    if absent:
        return f"{', '.join(absent)} not installed (apt: slurm-wlm slurm-client munge)"
    if os.geteuid():
        return "Slurm's daemons here run as root only"
    return None


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for a condition; a failure names ``what``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


class Cluster:
    """Nodes n1, n2, ... and two partitions, of which urgent preempts train."""

    def __init__(self, root: Path, nodes: int, node: Node) -> None:
        self.root = root
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(root / "slurm.conf")}
        self.env |= {"MUNGE_SOCKET": str(root / "munge" / "socket")}
        host = socket.gethostname().split(".")[0]
        (root / "state").mkdir(parents=True)
        devices = self._devices(node.gpus)
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} "
            f"CPUs={node.cpus} RealMemory={node.megabytes} Gres=gpu:{node.gpus}"
            for name in self.names
        ]
        conf = _CONF.format(host=host, port=free_port(), root=root, nodes="\n".join(lines))
        (root / "slurm.conf").write_text(conf)
        gres = (f"NodeName={name} Name=gpu File={files}\n" for name, files in devices.items())
        (root / "gres.conf").write_text("".join(gres))

    def _devices(self, gpus: int) -> dict[str, str]:
        """Files that stand for each node's GPUs."""
        found = {}
        for name in self.names:
            for number in range(gpus):
                file = self.root / f"{name}-gpu{number}"
                os.mknod(file, 0o20666, os.makedev(1, 3))
            found[name] = f"{self.root}/{name}-gpu[0-{gpus - 1}]"
        return found

    def start(self) -> None:
        """Start all daemons and wait for the nodes."""
        munge = self.root / "munge"
        munge.mkdir(mode=0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={munge}/socket",
            f"--pid-file={munge}/pid",
            f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        )
        until((munge / "socket").exists, "munged")
        self._daemon("slurmctld", "-D", "-i")
        for name in self.names:
            self.start_node(name)
        until(lambda: self.nodes_in("idle") == self.names, "nodes idle")

    def start_node(self, name: str) -> None:
        self._daemon(f"slurmd-{name}", "-D", "-N", name, program="slurmd")

    def revive_node(self, name: str) -> None:
        """Start a node whose daemon was killed, and wait until it is free."""
        self.start_node(name)
        until(lambda: name in self.nodes_in("idle"), f"{name} idle", 120)

    def _daemon(self, name: str, *arguments: str, program: str = "") -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [program or name, *arguments],
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        time.sleep(1)
        for process in self.daemons.values():
            process.kill()
            process.wait()

    def run(self, *command: str, check: bool = True, **env: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, timeout=60
        )
        assert not (check and done.returncode), f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def nodes_in(self, state: str) -> list[str]:
        told = self.run("sinfo", "-h", "-N", "-p", "train", "-t", state, "-o", "%N", check=False)
        return told.split()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        told = self.run("scontrol", "show", "job", "-o", number, check=False)
        return dict(field.split("=", 1) for field in told.split() if "=" in field)


@contextmanager
def cluster(root: Path, nodes: int, node: Node = Node()) -> Iterator[Cluster]:
    """A cluster that is there inside the context."""
    made = Cluster(root, nodes, node)
    try:
        made.start()
        yield made
    finally:
        made.stop()
