"""Scripts of slurm/ without Slurm: in bash, with stubs of the commands that slurm/env.sh calls.
They do not tell what Slurm decides; what bash makes of it they do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.forked import ROOT
from tests.slurm.cluster import PATIENCE

JOB = "7654"
# Tasks run one after the other. A job that is put back is killed, as Slurm does after a while.
_STUBS = {
    "srun": """\
tasks=$SLURM_NTASKS output=/dev/stdout worst=0
while [[ $1 == -* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; --output=*) output=${1#*=} ;; esac
    shift
done
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" >> "${output/\\%t/$i}" 2>&1
    status=$?
    ((status > worst)) && worst=$status
done
exit "$worst"
""",
    "scontrol": """\
if [[ $1 == requeue ]]; then
    touch "$STUBS/requeued"
    kill -KILL 0
fi
echo "JobId=$4 JobState=RUNNING Reason=None Restarts=$SLURM_RESTART_COUNT BatchHost=n1"
""",
    "squeue": """\
[[ $* == *%L* ]] && echo 30:00 || echo "$SLURM_JOB_ID"
""",
}


@dataclass(frozen=True)
class Done:
    """A job after its last start: its status, and what all its starts have said."""

    status: int
    restarts: int
    said: str


def submit(script: str, folder: Path, *arguments: str, **env: str) -> Done:
    """Run slurm/SCRIPT.sbatch as two tasks of a node, from a copy as Slurm does, and anew as often
    as it puts itself back."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    copy = shutil.copy(ROOT / "slurm" / f"{script}.sbatch", spool / "slurm_script")
    for name, source in _STUBS.items():
        (spool / name).write_text(f"#!/bin/bash\n{source}")
        (spool / name).chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    settings |= {"STUBS": str(spool), "PATH": f"{spool}:{os.environ['PATH']}"}
    told = {"JOB_ID": JOB, "JOB_NODELIST": "n1", "SUBMIT_DIR": str(ROOT), "NNODES": "1"}
    told |= {"NTASKS": "2", "NTASKS_PER_NODE": "2", "CPUS_PER_TASK": "1"}
    settings |= {f"SLURM_{name}": value for name, value in told.items()}
    settings |= {"SLURMD_NODENAME": "n1", "REQUEUE_PAUSE": "0", **env}
    said, requeued, restarts = folder / "said", spool / "requeued", 0
    while True:
        settings["SLURM_RESTART_COUNT"] = str(restarts)
        status = _run(["bash", copy, *arguments], settings, said)
        if not requeued.exists():
            return Done(status, restarts, said.read_text())
        requeued.unlink()
        restarts += 1
        assert restarts < 9, f"in circles: {said.read_text()}"


def _run(command: list[str], env: dict[str, str], output: Path) -> int:
    """A process in a group of its own, to its end; its status."""
    with output.open("a") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{command}: {output.read_text()}") from None
