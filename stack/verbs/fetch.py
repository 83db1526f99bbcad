"""``stack fetch``: everything that a recipe needs from the hub, into the cache, whole and pinned;
also the networks of its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.config.schema import AnyRecipe, DistillRecipe, SDTeacher
from stack.nets import hub
from stack.nets.pickles import convert
from stack.util.errors import UserError
from stack.util.files import write_json
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
        UserError: no network, HF_HUB_OFFLINE, a hub id without its commit, or a damaged folder.
    """
    rows = [_fetch(source) for source in _sources(recipe)] + fetch_networks(recipe)
    if not rows:
        print("nothing to fetch: the recipe names no pipeline")
    if json_file:
        write_json(json_file, {"sources": rows})
    return 0


def _sources(recipe: AnyRecipe) -> list[Source]:
    """All that comes from the hub."""
    if not isinstance(recipe, DistillRecipe) or not isinstance(recipe.teacher, SDTeacher):
        return []
    teacher = recipe.teacher
    return [Source("teacher", teacher.path, teacher.revision, teacher.allow_pickle)]


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
