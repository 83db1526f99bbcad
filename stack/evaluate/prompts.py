"""Lists of captions to draw: COCO's, PartiPrompts, HPSv2's, or any text file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.util import keyed
from stack.util.errors import UserError
from stack.util.files import parse_json, read_json

STYLES = ("anime", "photo", "concept-art", "paintings")
"""HPSv2's benchmark: a file for each."""


@dataclass(frozen=True)
class Prompts:
    """Captions with their places in the whole list.

    Args:
        captions: N, in the list's order. indices: int64 (N,), places in the whole list, which key
            the noise, so a subset's pictures are those of the whole. groups: of each caption, e.g.
            its style; empty strings where the list has none.
    """

    captions: list[str]
    indices: Tensor
    groups: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of captions, places and groups."""
        rows = [self.captions, self.indices.tolist(), self.groups]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def subset(self, count: int | None, seed: int) -> Prompts:
        """``count`` of them at random, in the list's order; all if None. A smaller subset of the
        same seed is part of a larger one.

        Raises:
            UserError: there are not so many.
        """
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise UserError(f"--subset: {count}: the list has {len(self)} prompts")
        draw = keyed.uniform((), seed=seed, iteration=0, role="prompts", positions=self.indices)
        return self._rows(draw.argsort(stable=True)[:count].sort().values)

    def _rows(self, rows: Tensor) -> Prompts:
        return replace(
            self,
            captions=[self.captions[row] for row in rows.tolist()],
            indices=self.indices[rows],
            groups=[self.groups[row] for row in rows.tolist()],
        )


def read_prompts(path: str | Path) -> Prompts:
    """The captions of a file or folder, told by its name.

    * ``.tsv``: PartiPrompts.tsv, columns Prompt and Category (the group).
    * ``.json``: a list of captions, as HPSv2's; or COCO's captions_*.json, of which every picture's
      first caption is taken, by the pictures' ids.
    * a folder: HPSv2's four lists (``anime.json``, ``photo.json``, ``concept-art.json``,
      ``paintings.json``); the styles are the groups.
    * anything else: a caption a line; empty lines do not count.

    Raises:
        UserError: no such file, not of that form, or without captions.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such file; a captions file has a caption a line, or is one of a known form"
        )
    rows = _rows_of(path)
    if not rows:
        raise UserError(f"{path}: no captions in it")
    captions, groups = (list(column) for column in zip(*rows, strict=True))
    return Prompts(captions, torch.arange(len(captions)), groups)


def _rows_of(path: Path) -> list[tuple[str, str]]:
    """(caption, group) of every caption."""
    if path.is_dir():
        lists = {style: read_json(path / f"{style}.json") for style in STYLES}
        return [row for style in STYLES for row in _listed(lists[style], path, style)]
    if path.suffix == ".json":
        value = parse_json(path.read_bytes(), path)
        return _coco(value, path) if isinstance(value, dict) else _listed(value, path, "")
    text = _text(path)
    if path.suffix == ".tsv":
        return _parti(text, path)
    return [(line.strip(), "") for line in text.splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None


def _listed(value: Any, path: Path, group: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{path}: neither a list of captions nor COCO's annotations")
    return [(caption, group) for caption in value]


def _coco(value: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    first: dict[int, tuple[int, str]] = {}
    try:
        for note in value["annotations"]:
            told = (note["id"], " ".join(note["caption"].split()))
            first[note["image_id"]] = min(told, first.get(note["image_id"], told))
    except (KeyError, TypeError):
        raise UserError(f"{path}: annotations: not COCO's captions_*.json") from None
    return [(first[image][1], "") for image in sorted(first)]


def _parti(text: str, path: Path) -> list[tuple[str, str]]:
    # Its prompts hold bare quotation marks: no cell is quoted.
    table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    if "Prompt" not in (table.fieldnames or ()):
        raise UserError(f"{path}: no column Prompt, so not PartiPrompts.tsv")
    return [(row["Prompt"], row.get("Category") or "") for row in table]
