"""Pipelines of the Hugging Face hub, whole and pinned, in the cache of `stack.nets.hub_cache`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from stack.nets.hub_cache import (
    Faults,
    Part,
    Staged,
    cached_fault,
    cached_folder,
    current_commit,
    from_hub,
    json_fault,
    listing,
    online,
    stage_part,
    weight_faults,
)
from stack.nets.pickles import ASK, PICKLES, convert, pickles_only
from stack.nets.weights import STEMS
from stack.util.errors import UserError

__all__ = [
    "Staged",
    "current_commit",
    "fault",
    "from_hub",
    "online",
    "pipeline_folder",
    "stage",
]

_CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""The components that are used, and the file that each cannot do without."""
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_ENDINGS = (".safetensors", ".safetensors.index.json", "-?????-of-?????.safetensors")
_INDEX = "model_index.json"
_WANTED = (
    _INDEX,
    *(f"{part}/{name}" for part, name in _CONFIGS.items()),
    *(f"{part}/{stem}{ending}" for part, stem in STEMS.items() for ending in _ENDINGS),
    "tokenizer/*.json",
    "tokenizer/*.txt",
)
"""What is staged where whole weights exist: no pickles unless asked for, no other component, no
variant."""


def pipeline_folder(path: str, revision: str | None) -> Path:
    """The folder of a pipeline; the network is never asked.

    Args:
        path: folder, or hub id (org/name). revision: the hub id's commit.

    Raises:
        UserError: the hub id is not staged, or a staged file is missing or cut short.
    """
    if not from_hub(path):
        return Path(path)
    if revision is None:
        raise UserError(
            f"teacher.path: {path}: no such folder; if a repository of the hub is meant, "
            "teacher.revision is missing, which python -m stack fetch RECIPE names"
        )
    return cached_folder(_PIPELINE, path, revision)


def fault(path: str, revision: str | None, *, hashed: bool = True) -> str | None:
    """The first thing that is missing or damaged of a pipeline, in one line; None if it is whole.

    Every file from the hub is read and compared with its checksum, or only its size where
    ``hashed`` is false; of a folder, whose files have none, the configurations are parsed and the
    weights' headers compared with their sizes.
    """
    if revision is not None and from_hub(path):
        return cached_fault(_PIPELINE, path, revision, hashed=hashed)
    return next((f"{path}/{name}: {told}" for name, told in _faults(Path(path))), None)


def stage(path: str, revision: str, *, pickles: bool = False) -> Staged:
    """Bring a pipeline into the cache as `stage_part` does; UserError as there.

    Args:
        pickles: make safetensors of what the commit has as pickles only.
    """
    try:
        return stage_part(_PIPELINE, path, revision)
    except UserError as error:
        wanted = _pickles_only(path, revision)
        if not wanted:
            raise
        if not pickles:
            raise UserError(f"{error}; {ASK}") from None
    raw = replace(_PIPELINE, wanted=(*_WANTED, *wanted), faults=_config_faults)
    convert(stage_part(raw, path, revision).folder)
    return stage_part(_PIPELINE, path, revision)


def _pickles_only(path: str, revision: str) -> list[str]:
    """Pickles in the hub of components that have no safetensors there."""
    patterns = {part: tuple(f"{part}/{name}" for name in names) for part, names in PICKLES.items()}
    known = [file.path for file in listing(_PIPELINE, path, revision)]
    found = []
    for part, wanted in patterns.items():
        if not any(name.startswith(f"{part}/") and ".safetensors" in name for name in known):
            there = listing(replace(_PIPELINE, wanted=wanted), path, revision)
            found += [file.path for file in there]
    return found


def _faults(folder: Path) -> Faults:
    """What a pipeline folder lacks or has damaged, as (name, what is wrong)."""
    yield from _config_faults(folder)
    for part, stem in STEMS.items():
        hint = f"; {ASK}" if pickles_only(folder, part) else ""
        for name, told in weight_faults(folder / part, stem):
            yield f"{part}/{name}", told + hint


def _config_faults(folder: Path) -> Faults:
    if told := json_fault(folder / _INDEX):
        yield _INDEX, told
    else:
        named = json.loads((folder / _INDEX).read_bytes())
        yield from ((_INDEX, f"names no {part}") for part in _CONFIGS if not _has(named, part))
    for part, config in _CONFIGS.items():
        if told := json_fault(folder / part / config):
            yield f"{part}/{config}", told
    if not any((folder / "tokenizer" / name).is_file() for name in _VOCABULARIES):
        yield f"tokenizer/{'|'.join(_VOCABULARIES)}", "missing"


def _has(named: dict[str, list[str | None]], part: str) -> bool:
    """Whether model_index.json gives a component its class; a dropped one has [null, null]."""
    return part in named and None not in named[part]


_PIPELINE = Part("teacher.path", "teacher.revision", _WANTED, _faults, _INDEX)
