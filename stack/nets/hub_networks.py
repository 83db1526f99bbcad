"""Networks that metrics look through: folders and files, of this machine or of the hub's cache."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from stack.nets.hub_cache import (
    Faults,
    Part,
    Staged,
    cached_fault,
    cached_folder,
    json_fault,
    stage_part,
    weight_faults,
)

_OF_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})(?::([\w.-]+))?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_MODEL = ("config.json", "preprocessor_config.json", *_WEIGHTS)
_WANTED = {
    "clip": (*_MODEL, *_TOKENIZER),
    "dino": _MODEL,
    "hps_tokenizer": ("config.json", *_TOKENIZER),
}
"""Files of the networks that are folders."""


def network_path(name: str, told: str) -> Path:
    """The folder or file of a network; the network is never asked.

    Args:
        name: of the recipe's evaluation.networks. told: a path, or NAME@COMMIT or NAME@COMMIT:FILE
            of the hub.

    Raises:
        UserError: of the hub, and not staged; the message says what stages it.
    """
    if match := _OF_HUB.fullmatch(told):
        path, revision, file = match.groups()
        return cached_folder(_part(name, file), path, revision) / (file or "")
    return Path(told)


def network_fault(name: str, told: str, *, hashed: bool = True) -> str | None:
    """The first thing that is missing or damaged of a network, in one line; None if it is whole.
    Of one that is no part of the hub, whether it is there; ``hashed`` as in `cached_fault`."""
    if match := _OF_HUB.fullmatch(told):
        path, revision, file = match.groups()
        return cached_fault(_part(name, file), path, revision, hashed=hashed)
    return None if Path(told).exists() else f"{told}: missing"


def stage_network(name: str, told: str) -> Staged | None:
    """Bring a network of the hub into the cache, as `stage_part` does; None if it is not of the
    hub."""
    if match := _OF_HUB.fullmatch(told):
        path, revision, file = match.groups()
        return stage_part(_part(name, file), path, revision)
    return None


def staged_by_fetch(told: str) -> bool:
    """Whether a network is named as NAME@COMMIT or NAME@COMMIT:FILE of the hub."""
    return _OF_HUB.fullmatch(told) is not None


def _part(name: str, file: str | None) -> Part:
    field = f"evaluation.networks.{name}"
    if file:
        return Part(field, field, (file,), partial(_lacking, (file,)), file)
    wanted = _WANTED.get(name, _MODEL)
    return Part(field, field, wanted, partial(_faults, wanted), "config.json")


def _lacking(names: tuple[str, ...], folder: Path) -> Faults:
    yield from ((name, "missing") for name in names if not (folder / name).is_file())


def _faults(wanted: tuple[str, ...], folder: Path) -> Faults:
    """What a model's folder lacks of what its patterns want."""
    configs = [name for name in wanted if name.endswith("config.json")]
    for name in configs:
        if name != "tokenizer_config.json" and (told := json_fault(folder / name)):
            yield name, told
    if _WEIGHTS[0] in wanted:
        yield from weight_faults(folder, "model")
    if "vocab.json" in wanted and not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.json")
    ):
        yield "tokenizer.json|vocab.json", "missing"
