"""The networks of a recipe's metrics, brought to this machine by ``stack fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stack.config.schema import AnyRecipe
from stack.data.storage import expand_variables
from stack.evaluate import inception
from stack.nets.hub_cache import current_commit, from_hub
from stack.nets.hub_networks import network_fault, stage_network
from stack.train.build_suite import networks_of
from stack.train.build_tools import FROM
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.verbs.fetch_file import download


def fetch_networks(recipe: AnyRecipe) -> list[dict[str, Any]]:
    """Stage and check every network that the recipe's evaluation names; a line and a row for each.

    Raises:
        UserError: one is neither here nor to be had, or is damaged.
    """
    return [_fetch(name, told) for name, told in networks_of(recipe)]


def _fetch(name: str, told: str) -> dict[str, Any]:
    path = expand_variables(told)
    row: dict[str, Any] = {"what": name, "path": told}
    if staged := stage_network(name, path):
        size = f"{staged.files} files, {staged.bytes:,} bytes"
        print(f"{name}: {told}: {size}, checked, in {staged.folder}")
        return row | {"folder": str(staged.folder), "files": staged.files, "bytes": staged.bytes}
    if from_hub(path):
        commit = current_commit(path) or "COMMIT, the 40 hex digits of one of its commits"
        raise UserError(f"evaluation.networks.{name}: {told}: not pinned; write {told}@{commit}")
    if name == "inception":
        return row | _inception(Path(path))
    if fault := network_fault(name, path):
        raise UserError(f"evaluation.networks.{name}: {fault}; it comes from {FROM[name]}")
    print(f"{name}: {path} is there: nothing to fetch")
    return row | {"folder": path}


def _inception(path: Path) -> dict[str, Any]:
    """Inception's file, downloaded to where the recipe has it."""
    if not path.exists():
        download(inception.SOURCE, path, inception.SHA256)
        told = f"{inception.SOURCE}: 1 files, {path.stat().st_size:,} bytes, checked, in {path}"
    elif sha256_file(path) == inception.SHA256:
        told = f"{path} is there, and is the file of {inception.SOURCE}"
    else:
        told = f"{path} is there, but is not the file of {inception.SOURCE}"
    print(f"inception: {told}")
    return {"folder": str(path), "files": 1, "bytes": path.stat().st_size}
