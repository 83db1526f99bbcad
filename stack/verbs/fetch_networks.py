"""The networks of a recipe's metrics, brought to this machine by ``stack fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stack.config.schema import AnyRecipe
from stack.data.storage import expand_variables, is_url
from stack.evaluate import inception
from stack.nets.hub_cache import REMEDY, current_commit, from_hub, online
from stack.nets.hub_networks import network_fault, stage_network, staged_by_fetch
from stack.train.build_suite import networks_of
from stack.train.build_tools import FROM, place_of
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.verbs.fetch_file import download

_FILES = ("inception", "classifier")
"""Networks that the hub has not in the form that is used here."""


def fetch_networks(recipe: AnyRecipe) -> list[dict[str, Any]]:
    """Stage and check every network that the recipe's evaluation names; a line and a row for each.

    Raises:
        UserError: one is neither here nor to be had, or is damaged.
    """
    return [_fetch(name, told) for name, told in networks_of(recipe)]


def fault_of(name: str, told: str, *, hashed: bool = True) -> str | None:
    """The first thing that is wrong with a network, and what mends it, in one line; None if it is
    whole. Of a folder or file that has no known checksum, whether it is there.

    Args:
        hashed: compare checksums; else sizes.
    """
    path = place_of(name, told)
    if fault := network_fault(name, path, hashed=hashed):
        mends = REMEDY if has_checksums(name, told) else f"it comes from {FROM[name]}"
        return f"{fault}; {mends}"
    if name == "inception" and hashed and not staged_by_fetch(path):
        return _another(Path(path))
    return None


def has_checksums(name: str, told: str) -> bool:
    """Whether a network is of those that ``stack fetch`` brings, which can be told from others."""
    return name == "inception" or staged_by_fetch(expand_variables(told))


def _fetch(name: str, told: str) -> dict[str, Any]:
    path, field = place_of(name, told), f"evaluation.networks.{name}"
    row: dict[str, Any] = {"what": name, "path": told}
    if staged := stage_network(name, path):
        size = f"{staged.files} files, {staged.bytes:,} bytes"
        print(f"{name}: {told}: {size}, checked, in {staged.folder}")
        return row | {"folder": str(staged.folder), "files": staged.files, "bytes": staged.bytes}
    if name not in _FILES and from_hub(path):
        online(f"{field}: {told}: no such folder, and not pinned as a hub id")
        commit = current_commit(path) or "COMMIT, the 40 hex digits of one of its commits"
        raise UserError(
            f"{field}: {told}: no such folder; if the hub's is meant, it is not pinned; write "
            f"{told}@{commit}"
        )
    if name == "inception" and not Path(path).exists():
        return row | _inception(Path(path), told)
    if fault := fault_of(name, told):
        raise UserError(f"{field}: {fault}")
    checked = f", and is the file of {inception.SOURCE}" if name == "inception" else ""
    print(f"{name}: {path} is there{checked}: nothing to fetch")
    return row | {"folder": path}


def _inception(path: Path, told: str) -> dict[str, Any]:
    """Inception's file, downloaded to where the recipe has it, or from where."""
    url = expand_variables(told)
    source = url if is_url(url) else inception.SOURCE
    download(source, path, inception.SHA256)
    size = path.stat().st_size
    print(f"inception: {source}: 1 files, {size:,} bytes, checked, in {path}")
    return {"folder": str(path), "files": 1, "bytes": size}


def _another(path: Path) -> str | None:
    """Whether a file is another than the published Inception, and what to do then."""
    if path.is_file() and (found := sha256_file(path)) == inception.SHA256:
        return None
    told = f"its SHA-256 is {found}, not" if path.is_file() else "no file, so not of SHA-256"
    return f"{path}: {told} {inception.SHA256}; move it away, then {REMEDY}"
