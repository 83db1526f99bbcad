"""`data_prep verify`: every byte of a folder of shards against its checksums."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stack.data.index import Manifest, ShardEntry, check_shards, index_shard, parse_index
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.util.progress import progress


def verify(folder: Path) -> Manifest:
    """Check every shard, print each fault on a line of its own.

    Raises:
        UserError: there was a fault.
    """
    manifest = Manifest.read(folder)
    faults = 0
    with progress("verify", total=len(manifest.shards)) as bar:
        for entry in manifest.shards:
            for fault in _faults(folder, entry):
                print(fault, file=sys.stderr)
                faults += 1
            bar.advance()
    listed = {folder / entry.name for entry in manifest.shards}
    places = {folder, *(path.parent for path in listed)}
    tars = {path for place in places for path in place.glob("*.tar")}
    for stray in sorted(tars - listed):
        print(f"{stray}: not listed in the manifest", file=sys.stderr)
        faults += 1
    if faults:
        raise UserError(f"{folder}: {faults} faults; make the folder anew or restore it")
    return manifest


def _faults(folder: Path, entry: ShardEntry) -> Iterator[str]:
    path = folder / entry.name
    try:
        check_shards(folder, [entry])
        place = folder / entry.index_name
        index = parse_index(place.read_bytes(), entry, str(place))
        found = index_shard(path)
    except UserError as error:
        yield str(error)
        return
    if sha256_file(path) != entry.sha256:
        yield f"{path}: sha256: not the tar that the manifest lists"
    if index.dtype != found.dtype or len(index) != len(found):
        yield f"{path}: holds other samples or fields than {entry.index_name}"
        return
    for row in np.flatnonzero(index != found):
        yield f"{path}: {index['key'][row].decode()}: crc32 or place differs from its index"
