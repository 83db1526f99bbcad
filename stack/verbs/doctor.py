"""``stack doctor``: whether every node of a job has what a recipe needs, and which has not.

Ranks look by themselves and leave what they find on a board, so that a rank that hangs or never
comes is named by the first one rather than waited for. Collectives come last, if all are there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from stack.checkpoint.folders import committed, is_step
from stack.config.edm import EdmPretrainRecipe, EdmTeacher
from stack.config.schema import (
    AnyRecipe,
    DistillRecipe,
    Mixture2DTeacher,
    PretrainRecipe,
    SDTeacher,
)
from stack.parallel.collectives import Ranks, ranks_of
from stack.train.build import cache_of, device_of, layout_of, micro_batches_of, stream_of
from stack.train.build_algorithm import check_ended
from stack.util.errors import PeerLostError
from stack.util.files import write_json
from stack.verbs import doctor_inputs, doctor_machine, doctor_space
from stack.verbs.doctor_board import Board, open_board
from stack.verbs.doctor_findings import (
    Check,
    Finding,
    Level,
    as_json,
    compare,
    lines,
    spans,
    within,
)
from stack.verbs.doctor_links import links
from stack.verbs.doctor_networks import (
    attention_shapes,
    checkpoint_bytes,
    edm_classes,
    metric_networks,
)

_EACH, _ALL = 45.0, 75.0
"""Seconds that one check, and all of a rank's own checks, may take."""
_LATE = 5.0
"""Seconds that a rank may be behind the first one at least."""
_LINKS = 30.0
"""Seconds for the collectives."""
_COLLECTIVES = "collectives"
_DIFFERENT: dict[str, Level] = {"machine": "warn", "packages": "fail"}
"""How bad it is that nodes differ."""


def doctor(recipe: AnyRecipe, *, json_file: Path | None = None) -> int:
    """Check and print; returns 0 if nothing failed, else 1, on every rank.

    Raises:
        UserError: there is no first rank. PeerLostError: it has gone.
    """
    began = time.monotonic()
    patience = min(_ALL, recipe.parallel.timeout)
    board = open_board(patience)
    try:
        checks = _checks(recipe, board)
        _look(board, checks, began)
        missing = _meet(board, max(began + patience, time.monotonic() + _LATE))
        if not missing and board.world_size > 1:
            _connect(recipe, board)
        if board.first:
            seconds = time.monotonic() - began
            return _lead(board, [*checks, _COLLECTIVES], missing, seconds, json_file)
        verdict = board.read("verdict", 0, _ALL + _LINKS)
        board.write("bye", True)
        return verdict
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise PeerLostError(f"rank {board.rank}: the first rank is gone ({reason})") from None


def _look(board: Board, checks: Mapping[str, Check], began: float) -> None:
    """What this rank finds by itself, on the board."""
    board.write("here", board.host)
    said: set[str] = set()
    for name, check in checks.items():
        limit = max(_LATE, min(_EACH, began + _ALL - time.monotonic()))
        # What several checks stumble over is told by the first of them.
        found = [one for one in _note(board, name, check, limit) if one.text not in said]
        said |= {one.text for one in found if one.level == "fail"}
        board.write(name, [asdict(one) for one in found])
    board.write("at", "waiting for the others")
    board.write("ready", True)


def _lead(
    board: Board,
    names: Sequence[str],
    missing: Sequence[int],
    seconds: float,
    json_file: Path | None,
) -> int:
    """The first rank's end: the report; then the others go, and the store with this one."""
    verdict = 1
    try:
        verdict = _report(board, names, missing, seconds, json_file)
    finally:
        doctor_space.clear(board)
        board.write("verdict", verdict)
        present = [rank for rank in board.read_all("here") if rank and rank not in missing]
        board.absent("bye", present, time.monotonic() + _LATE)
    return verdict


def _checks(recipe: AnyRecipe, board: Board) -> dict[str, Check]:
    """What a rank does by itself, by name."""
    bf16 = recipe.precision == "bf16"

    def attention() -> Iterator[Finding]:
        shapes = attention_shapes(recipe)
        operator = recipe.compute.attention if isinstance(recipe, DistillRecipe) else "sdpa"
        return doctor_machine.attention(device_of(recipe.device), shapes, operator, bf16=bf16)

    def space() -> Iterator[Finding]:
        return doctor_space.space(Path(recipe.out), checkpoint_bytes(recipe), board)

    return {
        "machine": partial(doctor_machine.machine, recipe.device),
        "packages": partial(doctor_machine.packages, recipe.parallel.backend),
        "teacher": partial(_teacher, recipe, board.hashes),
        "metrics": partial(metric_networks, recipe, hashed=board.hashes),
        "attention": attention,
        "data": partial(_data, recipe, board.rank, board.share),
        "space": space,
        "layout": partial(_layout, recipe, Ranks(board.rank, board.world_size)),
    }


def _teacher(recipe: AnyRecipe, hashed: bool) -> Iterator[Finding]:
    if not isinstance(recipe, DistillRecipe):
        yield Finding("ok", "none: this recipe makes one")
        return
    teacher = recipe.teacher
    if isinstance(teacher, SDTeacher):
        yield from doctor_inputs.teacher(teacher.path, teacher.revision, hashed=hashed)
    elif isinstance(teacher, Mixture2DTeacher):
        yield Finding("ok", "analytic, without files")
    else:
        yield from doctor_inputs.edm_teacher(teacher.path)
    if judge := recipe.evaluation.judge:
        yield doctor_inputs.named("evaluation.judge", judge, Path(judge).is_file())
    if start := recipe.init_from:
        folder = Path(start)
        there = folder.is_dir() if is_step(folder) else bool(committed(folder / "checkpoints"))
        if there and not is_step(folder):
            check_ended(folder, committed(folder / "checkpoints")[-1])
        yield doctor_inputs.named("init_from", start, there)


def _data(recipe: AnyRecipe, rank: int, share: tuple[int, int]) -> Iterator[Finding]:
    data = recipe.data
    if data is None:
        yield Finding("ok", "none: the teacher is its own data")
        return
    wanted: list[tuple[str, ...]] = [("latent", "image"), ("tokens", "text")]
    if isinstance(recipe, PretrainRecipe):
        wanted = [("image",), ("text",)]
    elif isinstance(recipe, EdmPretrainRecipe) or isinstance(recipe.teacher, EdmTeacher):
        wanted = [("image",), ("cls",)] if edm_classes(recipe) else [("image",)]
    elif recipe.evaluation.quick_every:
        wanted += [("image",), ("json",)]
    cache = cache_of(data)
    yield from doctor_inputs.data(
        data.folders, wanted, cache=cache, retries=data.retries, rank=rank, share=share
    )


def _layout(recipe: AnyRecipe, ranks: Ranks) -> Iterator[Finding]:
    """What training would refuse at its start, in its words."""
    backend = recipe.parallel.backend
    if backend == "none":
        with ranks_of(backend):
            pass
    layout_of(recipe, ranks)
    if isinstance(recipe, PretrainRecipe):
        batches, micro_batches = [recipe.vae.batch, recipe.unet.batch], 1
    elif isinstance(recipe, EdmPretrainRecipe):
        batches, micro_batches = [recipe.data.global_batch], 1
    else:
        batches, micro_batches = [recipe.batch_size], micro_batches_of(recipe, ranks)
    for batch in batches:
        if recipe.data:
            stream_of(recipe.data, recipe.seed, ranks=ranks, batch=batch)
        yield Finding(
            "ok",
            f"{backend}: {batch} samples = {ranks.world_size} ranks x {micro_batches} "
            f"micro-batches x {batch // ranks.world_size // micro_batches}",
        )


def _note(board: Board, name: str, check: Check, limit: float) -> list[Finding]:
    """What a check finds, signed."""
    board.write("at", name)
    return [replace(one, host=board.host, rank=board.rank) for one in within(limit, check)]


def _meet(board: Board, deadline: float) -> list[int]:
    """Ranks that are not there in time, as the first one decides it for all."""
    if board.first:
        board.write("missing", board.absent("ready", range(board.world_size), deadline))
    return board.read("missing", 0, _ALL + _LATE)


def _connect(recipe: AnyRecipe, board: Board) -> None:
    """The collectives, whose ranks wait a little longer for each other than for the result: NCCL
    ends a process at its timeout."""
    timeout = min(_LINKS, recipe.parallel.timeout)

    def check() -> Iterator[Finding]:
        return links(board, device_of(recipe.device), timeout + _LATE)

    found = _note(board, _COLLECTIVES, check, timeout)
    board.write(_COLLECTIVES, [asdict(one) for one in found])
    if board.first:
        board.absent(_COLLECTIVES, range(board.world_size), time.monotonic() + _LATE)


def _report(
    board: Board,
    names: Sequence[str],
    missing: Sequence[int],
    seconds: float,
    json_file: Path | None,
) -> int:
    """Print what is on the board; returns whether anything failed."""
    hosts = board.read_all("here")
    nodes: dict[str, list[int]] = {}
    for rank, host in hosts.items():
        nodes.setdefault(host, []).append(rank)
    every: dict[str, list[Finding]] = {}
    for name in names:
        notes = board.read_all(name)
        found = [Finding(**one) for note in notes.values() for one in note]
        every[name] = compare(found, _DIFFERENT.get(name, "ok"))
    every[_COLLECTIVES] += _silent(board, hosts, missing, seconds)
    if board.world_size == 1:
        every[_COLLECTIVES].append(Finding("ok", "one rank has none", host=board.host))
    for name, found in every.items():
        print(*lines(name, found, nodes), sep="\n")
    failed, warned = (
        len({(name, one.text) for name in every for one in every[name] if one.level == level})
        for level in ("fail", "warn")
    )
    print(f"{failed} failed, {warned} warnings ({seconds:.0f} s)")
    if json_file:
        result = {"ok": not failed, "seconds": seconds, "ranks": board.world_size}
        checks = {name: as_json(found) for name, found in every.items()}
        write_json(json_file, result | {"checks": checks})
    return int(failed > 0)


def _silent(
    board: Board, hosts: dict[int, str], missing: Sequence[int], seconds: float
) -> Iterator[Finding]:
    """The ranks that never came, and those that fell silent, with what they were at."""
    strangers = [rank for rank in missing if rank not in hosts]
    if strangers:
        there = ", ".join(dict.fromkeys(hosts.values()))
        text = f"did not come within {seconds:.0f} s; there are {spans(hosts)} ({there})"
        yield from (Finding("fail", text, rank=rank) for rank in strangers)
    at, done = board.read_all("at"), board.read_all(_COLLECTIVES)
    stuck = missing or ([r for r in hosts if r not in done] if board.world_size > 1 else [])
    for rank in stuck:
        if rank in hosts:
            text = f"silent at {at[rank]} after {seconds:.0f} s"
            yield Finding("fail", text, host=hosts[rank], rank=rank)
