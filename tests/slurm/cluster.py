"""A real Slurm on one machine, without systemd: munged, slurmctld, and a slurmd a node. Clusters of
several test processes get along: each has ports, job numbers and a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATIENCE = 600
"""Seconds that anything may take on a busy machine."""

# Slurm's own timeouts are out of a busy machine's reach. Nodes are not lost by silence, but when a
# test says so (`Cluster.lose`). KillWait is the least that slurmd heeds, as all that is put back
# waits for it; n4 has another slurm.conf, for what must have time to save. A limit of time tells
# jobs that they are late, and ends none. The large nodes are in the cloud: Slurm plans with them
# without asking whether a slurmd is there.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
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
DebugFlags=NO_CONF_HASH
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdTimeout=36000
SlurmctldTimeout=600
MessageTimeout=300
TCPTimeout=60
BatchStartTimeout=600
UnkillableStepTimeout=600
InactiveLimit=0
KillWait={kill_wait}
OverTimeLimit=60
MinJobAge=36000
ReturnToService=2
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=-1
GresTypes=gpu
{nodes}
NodeName=large[1-8] NodeAddr=127.0.0.1 CPUs=96 RealMemory=500000 Gres=gpu:8 State=CLOUD
PartitionName=train Nodes=n[1-3] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=600
PartitionName=urgent Nodes=n[1-3] PriorityTier=10 PreemptMode=OFF MaxTime=60
PartitionName=patient Nodes=n4
PartitionName=large Nodes=large[1-8]
"""
_NODES = ("n1", "n2", "n3", "n4")
_CPUS, _GPUS, _MEGABYTES = 8, 2, 32_000
"""What a node claims to have; GPUs are device files that are /dev/null by another name."""
_KILL_WAIT, _PATIENT_KILL_WAIT = 5, 600

_BLOCK, _DAEMONS = 200, 10
"""Ports of a cluster, and those of its daemons among them, the last ones. slurm/env.sh takes the
port of a job's ranks from the job's number: 20,000 and up."""


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


def until(condition: Callable[[], object], what: str, told: Callable[[], str] = str) -> None:
    """Wait for a condition; a failure names ``what``, and says what is told then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s: {told()}"
        time.sleep(0.3)


def _block() -> tuple[socket.socket, int]:
    """The first port of a block that no other cluster has while the socket is open."""
    for first in range(20_000 + _BLOCK, 32_000, _BLOCK):
        marker = socket.socket()
        with suppress(OSError):
            marker.bind(("127.0.0.1", first + _BLOCK - 1))
            return marker, first
        marker.close()
    raise AssertionError("60 clusters are on this machine already")


class Cluster:
    """Nodes n1 to n3 with two partitions, of which urgent preempts train; n4 by itself, where what
    is ended has ten minutes for it; and large nodes that take no job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(root / "slurm.conf")}
        self.env |= {"MUNGE_SOCKET": str(root / "munge" / "socket")}
        self._marker, first = _block()
        host = socket.gethostname().split(".")[0]
        (root / "state").mkdir(parents=True)
        *ports, port = range(first + _BLOCK - _DAEMONS, first + _BLOCK - 1)
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} "
            f"CPUs={_CPUS} RealMemory={_MEGABYTES} Gres=gpu:{_GPUS}"
            for name, own in zip(_NODES, ports, strict=False)
        ]
        said = {"host": host, "port": port, "first_job": first - 20_000, "root": root}
        for name, seconds in (("slurm", _KILL_WAIT), ("patient", _PATIENT_KILL_WAIT)):
            conf = _CONF.format(**said, nodes="\n".join(lines), kill_wait=seconds)
            (root / f"{name}.conf").write_text(conf)
        gres = (f"NodeName={name} Name=gpu File={self._devices(name)}\n" for name in _NODES)
        (root / "gres.conf").write_text("".join(gres))

    def _devices(self, name: str) -> str:
        """Files that stand for a node's GPUs."""
        for number in range(_GPUS):
            os.mknod(self.root / f"{name}-gpu{number}", 0o20666, os.makedev(1, 3))
        return f"{self.root}/{name}-gpu[0-{_GPUS - 1}]"

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
        for name in _NODES:
            self._node(name)
        until(self._at_rest, "nodes", self._told)

    def _node(self, name: str) -> None:
        conf = "patient" if name == "n4" else "slurm"
        self._daemon(
            name, "-D", "-N", name, "-f", str(self.root / f"{conf}.conf"), program="slurmd"
        )

    def _daemon(self, name: str, *arguments: str, program: str = "") -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [program or name, *arguments],
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def lose(self, name: str) -> None:
        """Let Slurm take a node for lost, whose jobs live on there: nobody tells them."""
        self.daemons[name].kill()
        self.daemons[name].wait()
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def clear(self) -> None:
        """End the jobs and bring back the nodes that a test has left; nothing where it has not."""
        for name in _NODES:
            if self.daemons[name].poll() is not None:
                self._node(name)
        if not self._at_rest():
            self.run("scancel", "--user=root")
            self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            until(self._at_rest, "an end of all jobs", self._told)

    def _at_rest(self) -> bool:
        idle = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()
        return {*_NODES} <= {*idle} and not self.run("squeue", "-h").strip()

    def _told(self) -> str:
        files = (self.root / f"{name}.out" for name in self.daemons)
        return self.run("sinfo", "-N", "-l", check=False) + "".join(f.read_text() for f in files)

    def kill(self) -> None:
        """End the daemons, and what they have left running."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF", "").startswith(f"{self.root}/"):
                    process.kill()
        self._marker.close()

    def run(self, *command: str, check: bool = True, **env: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert not (check and done.returncode), f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        told = self.run("scontrol", "show", "job", "-o", number)
        return dict(field.split("=", 1) for field in told.split() if "=" in field)


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """A cluster that is there inside the context."""
    made = Cluster(root)
    try:
        made.start()
        yield made
        made.clear()
    finally:
        made.kill()
