"""`data_prep merge`: one manifest for the parts of a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.card import write_card
from data_prep.shards import CARD, IMAGES, Tally, manifest_of, sole_writer
from stack.data.index import MANIFEST, Manifest, check_shards
from stack.util.errors import UserError

PART = re.compile(r"part-(\d{5})-of-(\d{5})")
"""Name of a part's folder: its number, and how many there are."""
_ONE = ("resolution", "crop", "vae", "tokenizer")
"""Fields of a manifest in which parts must agree."""


def parts_of(folder: Path) -> list[Path]:
    """The folders FOLDER/part-K-of-N, in order; none if there are none."""
    found = (path for path in folder.glob("part-*-of-*") if PART.fullmatch(path.name))
    return sorted(path for path in found if path.is_dir())


def merge(folder: Path) -> Manifest:
    """Write FOLDER/manifest.json over the shards of all of its parts, where they are.

    Raises:
        UserError: no parts, one missing or unfinished, or parts that do not belong together.
    """
    parts = parts_of(folder)
    if not parts:
        raise UserError(f"{folder}: no folders part-K-of-N in it")
    _check_numbers(folder, parts)
    with sole_writer(folder):
        return _merge(folder, parts)


def is_of_parts(folder: Path) -> bool:
    """Whether a folder's shards are its parts', under one manifest or none."""
    if not parts_of(folder):
        return False
    manifest = folder / MANIFEST
    return not manifest.is_file() or Manifest.read(folder).origin.get("verb") == "merge"


def _merge(folder: Path, parts: list[Path]) -> Manifest:
    if not is_of_parts(folder):
        raise UserError(f"{folder}: holds shards of its own beside parts; name a folder of parts")
    manifests = {part: Manifest.read(part) for part in parts}
    _check_alike({part: found for part, found in manifests.items() if found.samples})
    entries, tally, replaced = [], Tally(), []
    for part, manifest in manifests.items():
        check_shards(part, manifest.shards)
        tally.add(Tally(fields=Counter(manifest.fields), counts=Counter(manifest.counts)))
        replaced += [f"{part.name}/{name}" for name in manifest.replaced]
        entries += [
            entry.model_copy(update={"name": f"{part.name}/{entry.name}"})
            for entry in manifest.shards
        ]
    first = next((found for found in manifests.values() if found.samples), manifests[parts[0]])
    fingerprints = [manifest.fingerprint for manifest in manifests.values()]
    manifest = manifest_of(
        entries,
        tally,
        **{name: getattr(first, name) for name in _ONE},
        code=_versions(manifests.values()),
        replaced=tuple(replaced),
        origin={"verb": "merge", "parts": fingerprints},
    )
    manifest.write(folder)
    if (parts[0] / CARD).is_file():
        write_card(folder, manifest)
    return manifest


def _versions(manifests: Iterable[Manifest]) -> dict[str, str]:
    """The versions that made any of the parts, by verb."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for verb, version in manifest.code.items():
            found.setdefault(verb, set()).add(version)
    return {verb: ", ".join(sorted(versions)) for verb, versions in found.items()}


def _check_numbers(folder: Path, parts: list[Path]) -> None:
    numbers = [PART.fullmatch(part.name) for part in parts]
    counts = {int(found[2]) for found in numbers if found}
    if len(counts) > 1:
        told = " and ".join(str(count) for count in sorted(counts))
        raise UserError(f"{folder}: parts of {told}; they divide the rows in different ways")
    there = {int(found[1]) for found in numbers if found}
    if missing := sorted(set(range(counts.pop())) - there):
        raise UserError(f"{folder}: part {missing[0]} is missing ({len(missing)} of all)")


def _check_alike(manifests: dict[Path, Manifest]) -> None:
    """Parts that hold samples must hold them of one kind."""
    if not manifests:
        return
    (first, model), *others = manifests.items()
    for part, manifest in others:
        for name in _ONE:
            if (value := getattr(manifest, name)) != (expected := getattr(model, name)):
                raise UserError(f"{part}: {name}: {value}, but {first} has {expected}")
        if (here := _fields(manifest)) != (there := _fields(model)):
            raise UserError(
                f"{part}: fields: {', '.join(here)}, but {first} has {', '.join(there)}"
            )


def _fields(manifest: Manifest) -> list[str]:
    """The fields of samples; pictures of several formats are one."""
    return sorted({"image" if name in IMAGES else name for name in manifest.fields})
