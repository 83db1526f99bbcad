"""``stack fetch``: what a recipe needs from elsewhere, its teacher and the networks of its metrics;
of the hub into the cache, whole and pinned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.config.edm import EdmTeacher
from stack.config.schema import AnyRecipe, DistillRecipe, SDTeacher
from stack.nets import hub
from stack.nets.pickles import convert
from stack.util.errors import UserError
from stack.util.files import write_json
from stack.verbs.fetch_edm import fetch_edm
from stack.verbs.fetch_networks import fetch_networks


@dataclass(frozen=True)
class Source:
    """A pipeline that a recipe names: what for, its folder or hub id, the hub id's commit, and
    whether its weights may be pickles."""

    what: str
    path: str
    revision: str | None
    pickles: bool


def fetch(recipe: AnyRecipe, *, json_file: Path | None = None) -> int:
    """Stage and check what the recipe needs, one line for each; returns 0.

    Raises:
        UserError: no network, HF_HUB_OFFLINE, a hub id without its commit, a damaged folder, or
            a teacher that only its maker can bring.
    """
    rows = _teacher(recipe) + fetch_networks(recipe)
    if not rows:
        print("nothing to fetch: the recipe names no pipeline")
    if json_file:
        write_json(json_file, {"sources": rows})
    return 0


def _teacher(recipe: AnyRecipe) -> list[dict[str, Any]]:
    """The teacher of a recipe that has one with files."""
    teacher = recipe.teacher if isinstance(recipe, DistillRecipe) else None
    if isinstance(teacher, EdmTeacher):
        return [fetch_edm(Path(teacher.path))]
    if isinstance(teacher, SDTeacher):
        path, revision = teacher.path, teacher.revision
        return [_fetch(Source("teacher", path, revision, teacher.allow_pickle))]
    return []


def _fetch(source: Source) -> dict[str, Any]:
    """Stage one source, print its line and return its figures."""
    path, revision = source.path, source.revision
    row: dict[str, Any] = {"what": source.what, "path": path, "revision": revision}
    if not hub.from_hub(path):
        if source.pickles and (made := convert(Path(path))):
            print(f"{source.what}: made of pickles: {', '.join(map(str, made))}")
        if told := hub.fault(path, None):
            raise UserError(f"{source.what}.path: {told}")
        print(f"{source.what}: {path} is a folder: nothing to fetch")
        return row | {"folder": path}
    if revision is None:
        hub.online(f"{source.what}.path: {path}: no such folder, and not pinned as a hub id")
        raise UserError(f"{source.what}.revision: missing; {_pin(source)}")
    staged = hub.stage(path, revision, pickles=source.pickles)
    size = f"{staged.files} files, {staged.bytes:,} bytes"
    print(f"{source.what}: {path} at {revision}: {size}, checked, in {staged.folder}")
    return row | {"folder": str(staged.folder), "files": staged.files, "bytes": staged.bytes}


def _pin(source: Source) -> str:
    """How to pin a hub id, with the commit to take where the hub tells it."""
    commit = hub.current_commit(source.path)
    if commit is None:
        return (
            f"{source.path} is no folder, and {source.what}.revision must be the 40 hex digits of "
            "a commit of that hub repository, which the hub does not tell now"
        )
    return f"pin {source.path} by {source.what}.revision={commit}, its newest commit"
