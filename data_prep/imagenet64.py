"""`data_prep imagenet64`: pictures with class labels, as EDM's dataset_tool lays them out.

A folder or a zip of `00000/img00000000.png` and so on beside a `dataset.json` with
{"labels": [["00000/img00000000.png", 6], ...]}.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_prep.labelled import labelled_shards
from data_prep.pictures import DamagedError, Picture, damage
from stack.data.index import Manifest
from stack.util.errors import UserError
from stack.util.files import parse_json, sha256_file

LABELS = "dataset.json"


def imagenet64(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
) -> Manifest:
    """Write the pictures of a folder or zip, in a random order fixed by `seed`, as shards.

    A sample has the picture's bytes as they are, `cls` (the class's number) and `json` (the
    picture's name). One that cannot be read or decoded whole is left out, counted as `dropped`. Of
    a folder, names and sizes and `dataset.json` stand for the content when a run is continued.

    Raises:
        UserError: no such folder or zip, or its list of files or labels is damaged, or a label is
            missing or no class.
    """
    with ExitStack() as stack:
        if source.is_dir():
            read = _from_folder(source)
            digest = _listing(source)
        else:
            read = _from_zip(stack.enter_context(_open(source)))
            digest = sha256_file(source)
        labels = _labels(read, source)
        names = list(labels)

        def picture(number: int) -> Picture:
            name = names[number]
            try:
                image = read(name)
            except FileNotFoundError:
                raise UserError(f"{source}: {name}: in {LABELS}, but not there") from None
            key = name.rpartition(".")[0] or name
            return Picture(key, image, label=labels[name], about={"name": name})

        origin = {"verb": "imagenet64", "source": digest}
        return labelled_shards(
            picture,
            len(names),
            out,
            origin,
            seed=seed,
            samples_per_shard=samples_per_shard,
            overwrite=overwrite,
        )


def _labels(read: Callable[[str], bytes], source: Path) -> dict[str, int]:
    """Class by name of the picture, in the order of names."""
    path = f"{source}/{LABELS}"
    try:
        data = parse_json(read(LABELS), path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; it gives the class of each picture, as EDM's dataset_tool writes it"
        ) from None
    except DamagedError as error:
        raise UserError(f"{path}: cannot be read ({error}); restore the zip") from None
    rows = data.get("labels") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: labels: must be a list of [name, class] pairs")
    labels: dict[str, int] = {}
    for row in rows:
        match row:
            case [str(name), int(label)] if label >= 0 and not isinstance(label, bool):
                labels[name] = label
            case _:
                raise UserError(f"{path}: labels: {row!r} is not a pair [name, class]")
    return dict(sorted(labels.items()))


def _from_folder(folder: Path) -> Callable[[str], bytes]:
    root = folder.resolve()

    def read(name: str) -> bytes:
        try:
            path = (root / name).resolve()
        except ValueError:  # No file can have such a name.
            raise FileNotFoundError(name) from None
        if not path.is_relative_to(root):
            raise UserError(f"{folder}: {name}: lies outside the folder")
        return path.read_bytes()

    return read


def _from_zip(opened: zipfile.ZipFile) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        if name not in opened.NameToInfo:
            raise FileNotFoundError(name)
        with damage():
            return opened.read(name)

    return read


def _listing(folder: Path) -> str:
    """Hex SHA-256 of the names and sizes of a folder's files, and of its labels."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
    if (folder / LABELS).is_file():
        digest.update((folder / LABELS).read_bytes())
    return digest.hexdigest()


def _open(source: Path) -> zipfile.ZipFile:
    try:
        with damage():
            return zipfile.ZipFile(source)
    except FileNotFoundError:
        raise UserError(f"{source}: no such folder or zip file") from None
    except DamagedError as error:
        raise UserError(f"{source}: not a zip file ({error})") from None
