"""How a job of slurm/env.sh ends on a real Slurm, with stand-ins for its ranks."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, until
from tests.slurm.interpreter import ranks
from tests.slurm.job import Job

pytestmark = pytest.mark.slow

HEEDING = """\
for name in ("SIGUSR1", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda *_: os._exit(85))
print("here", flush=True)
time.sleep(0 if restart else 900)
"""
DEAF = """\
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
print("here", flush=True)
time.sleep(0 if restart else 900)
"""
DYING = """\
print("here", flush=True)
time.sleep(0 if restart else 900)
"""
MEND = """\
if number == 0:
    print("error: x: mend me", file=sys.stderr)
    sys.exit(2)
time.sleep(1)
sys.exit(75)
"""


def noting(at: str, *signals: str) -> str:
    """What notes the job, at this part of its first start, waits until these signals have come to
    its step, where they end processes that do not ignore them, and counts how often it is tried."""
    return f"""\
open(f"{{folder}}/{{part}}-{{restart}}", "a").write("x")
if part == {at!r} and not restart:
    others = []
    for one in (getattr(signal, name) for name in {signals!r}):
        heed = functools.partial(signal.signal, one, signal.SIG_DFL)
        others.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=heed))
    open(f"{{folder}}/noting", "w").close()
    for other in others:
        other.wait()
"""


def undisturbed(job: Job) -> None:
    """It ends by itself, at its first start."""


def signalled(name: str) -> Callable[[Job], None]:
    """Through Slurm, once the two ranks are there."""

    def disturb(job: Job) -> None:
        job.under_way(2)
        job.signal(name)

    return disturb


def signalled_alone(job: Job) -> None:
    """As proctrack/cgroup would: the first process of a task alone."""
    job.under_way(2)
    for number in (0, 1):
        job.rank_script(number).send_signal(signal.SIGUSR1)


def late(job: Job) -> None:
    """Out of time in less than a minute."""
    job.under_way(2)
    job.limit(1)


def being_noted(job: Job) -> None:
    noting = job.run.parent / "noting"
    job.until(lambda _: noting.exists(), "a note under way")


def preempted_while_noted(job: Job) -> None:
    """And stopped later, or its ranks would go on to the end of the partition's GraceTime."""
    being_noted(job)
    preempt(job)
    job.under_way(4)
    job.signal("USR1")


def signalled_while_noted(job: Job) -> None:
    job.under_way(4)
    job.signal("USR1")
    being_noted(job)
    for name in ("USR1", "TERM"):
        job.signal(name)


def preempt(job: Job) -> None:
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    job.slurm.run("sbatch", *urgent, "--wrap=:")


@dataclass(frozen=True)
class Case:
    """Stand-ins, what happens to them, and how the job then ends.

    Args:
        ends: status of each start's end, and whether the job was put back. slurms: state and exit
            code that Slurm has at last. says: words of the job's output.
    """

    rank: str
    disturb: Callable[[Job], None]
    ends: Sequence[tuple[int, bool]]
    slurms: str = "COMPLETED 0:0"
    says: str = ""
    nodes: int = 1
    script: str = "coyo_js"
    notes: str = ""
    noting: str = ""
    boxed: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


STOPPED = ((85, True), (0, False))
CASES = {
    "an error to mend on one rank, whose loss ends the others with a higher status": Case(
        MEND, undisturbed, [(2, False)], "FAILED 75:0", "error: x: mend me", nodes=2
    ),
    "USR1": Case(HEEDING, signalled("USR1"), STOPPED),
    "TERM": Case(HEEDING, signalled("TERM"), STOPPED),
    "USR1 to the first processes of tasks": Case(HEEDING, signalled_alone, STOPPED),
    "an evaluation, whose ranks a signal ends": Case(
        DYING,
        signalled("USR1"),
        [(138, True), (0, False)],
        script="coyo_evaluate",
        notes="evaluations",
    ),
    "ranks that do not end in time": Case(
        DEAF,
        late,
        [(143, True), (0, False)],
        says="the time is nearly over, and ranks have not ended",
    ),
    "preempted while its begin is noted": Case(
        HEEDING,
        preempted_while_noted,
        STOPPED,
        nodes=2,
        noting=noting("begin", "SIGTERM"),
        boxed=True,
    ),
    "signalled while its end is noted": Case(
        HEEDING,
        signalled_while_noted,
        STOPPED,
        nodes=2,
        noting=noting("end", "SIGUSR1", "SIGTERM"),
        boxed=True,
    ),
}
REASONS = {
    2: "status 2: an error to mend, which the log says",
    85: "stopped by a signal",
    138: "stopped by a signal",
    143: "out of time before its ranks had ended",
    0: "finished",
}


def submit(slurm: Cluster, folder: Path, case: Case) -> Job:
    venv = ranks(folder, case.rank, case.noting)
    env = {"VENV": str(venv), **case.env, **(like_pyxis(slurm, folder) if case.boxed else {})}
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "recipe.yaml").write_text("")  # Of a run that is evaluated.
    job = Job(slurm, folder / "run", f"-N{case.nodes}", f"slurm/{case.script}.sbatch", **env)
    job.noted /= case.notes
    return job


def like_pyxis(slurm: Cluster, folder: Path) -> dict[str, str]:
    """Settings with which commands are steps of Slurm's, as in a container of pyxis', whose
    options an srun of ours takes away: Slurm has no such plugin here."""
    srun = folder / "bin" / "srun"
    real = shutil.which("srun", path=slurm.env["PATH"])
    srun.write_text(
        "#!/bin/bash\noptions=()\n"
        'for option; do [[ $option == --container-* ]] || options+=("$option"); done\n'
        f'exec {real} "${{options[@]}}"\n'
    )
    srun.chmod(0o755)
    path = f"{folder}/bin:{slurm.env['PATH']}"
    return {"CONTAINER": "an/image", "PATH": path, "LOCAL_SCRATCH": str(folder / "scratch" / "x")}


@pytest.mark.parametrize("name", CASES)
def test_an_end(name: str, slurm: Cluster, tmp_path: Path) -> None:
    case = CASES[name]
    job = submit(slurm, tmp_path, case)
    case.disturb(job)
    if len(case.ends) > 1:
        job.again(1)
    job.wait(case.slurms)
    assert job.restarts == len(case.ends) - 1, job.told()
    rows = job.notes("begin", "end")
    assert [row["event"] for row in rows] == ["begin", "end"] * len(case.ends), job.told()
    assert [(row["status"], row["requeue"]) for row in rows[1::2]] == [*case.ends], job.told()
    assert [row["reason"] for row in rows[1::2]] == [REASONS[status] for status, _ in case.ends]
    assert case.says in job.told()
    if case.noting:
        tries = {path.name: path.read_text() for path in tmp_path.glob("*-[01]")}
        assert tries == dict.fromkeys(["begin-0", "end-0", "begin-1", "end-1"], "x")
        assert (tmp_path / "scratch" / "x").is_dir()


LOST = """\
print("here", flush=True)
if restart:
    while "has begun anew without this node" not in open(f"{folder}/run.out").read():
        time.sleep(0.1)
else:
    time.sleep(900)
"""


def test_a_first_node_that_only_seems_lost(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm begins the job anew; the shell that lives on there must not put that back again."""
    job = submit(slurm, tmp_path, Case(LOST, undisturbed, [], nodes=2))
    job.under_way(4)
    host = job.slurms["BatchHost"]
    slurm.lose(host)
    job.again(1)
    assert job.slurms["BatchHost"] != host
    job.wait("COMPLETED 0:0")
    assert job.restarts == 1, job.told()
    assert [row["event"] for row in job.notes("begin", "end")] == ["begin", "begin", "end"]
    assert job.notes("end")[-1]["reason"] == "finished"


def test_a_run_belongs_to_the_job_that_lives(slurm: Cluster, tmp_path: Path) -> None:
    """Though no rank of it has given a sign of life; and not to one that was killed."""
    job = submit(slurm, tmp_path, Case(DEAF, undisturbed, []))
    job.under_way(2)
    second = submit(slurm, tmp_path, Case(DEAF, undisturbed, []))
    second.wait("FAILED 2:0")
    assert f"error: {job.run}: job {job.number} has it, at work or about to" in second.told()
    assert job.slurms["JobState"] == "RUNNING"
    job.signal("KILL", "--full")
    until(lambda: job.slurms["JobState"] not in ("RUNNING", "COMPLETING"), "an end", job.told)
    third = submit(slurm, tmp_path, Case("", undisturbed, []))
    third.wait("COMPLETED 0:0")
    assert [row["job"] for row in job.notes("begin")] == [job.number, third.number]


PATIENT = """\
if number == 3:
    sys.exit(9)
time.sleep(5)
print("rank 3 did not come", flush=True)
sys.exit(1)
"""


def test_a_rank_that_dies_does_not_take_the_doctor_along(slurm: Cluster, tmp_path: Path) -> None:
    """The first rank waits for it, longer than the others would be waited for in a training."""
    case = Case(PATIENT, undisturbed, [], nodes=2, script="doctor", env={"GRACE": "1"})
    job = submit(slurm, tmp_path, case)
    job.wait("FAILED 9:0")
    told = (tmp_path / "run.out").read_text()
    assert "n2: task 3: Exited with exit code 9" in told
    assert "rank 3 did not come" in told
