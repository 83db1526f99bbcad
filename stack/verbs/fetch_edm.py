"""NVIDIA's EDM networks, brought and imported by ``stack fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stack.nets.edm_files import edm_config, import_edm
from stack.nets.published import EDM_NETWORKS
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.verbs.fetch_file import download

SOURCE = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
"""Where NVIDIA's networks lie, each a pickle of its name (``EDM_NETWORKS``)."""


def fetch_edm(folder: Path) -> dict[str, Any]:
    """Bring an EDM teacher's folder, unless it is there; print its line and return its figures.

    The pickle is kept beside the folder, and one that lies there already is taken. NVIDIA publishes
    no checksums, so the line tells the SHA-256, to be compared with another machine's; the import
    runs nothing of what is in it.

    Raises:
        UserError: no network, a folder or a pickle that is not of such a network, or a name that
            is none of ``EDM_NETWORKS``.
    """
    row: dict[str, Any] = {"what": "teacher", "path": str(folder), "folder": str(folder)}
    if folder.exists():
        edm_config(folder)
        print(f"teacher: {folder} is a folder: nothing to fetch")
        return row
    if folder.name not in EDM_NETWORKS:
        raise UserError(
            f"teacher.path: {folder}: no such folder; stack import-edm makes it of one of NVIDIA's "
            f"pickles, stack pretrain of pictures; by name there are {', '.join(EDM_NETWORKS)}"
        )
    url, pickle = f"{SOURCE}/{folder.name}.pkl", folder.with_name(f"{folder.name}.pkl")
    here = pickle.exists()
    sha256 = sha256_file(pickle) if here else download(url, pickle, None)
    import_edm(pickle, folder)
    size, source = pickle.stat().st_size, pickle if here else url
    print(
        f"teacher: {source}: 1 files, {size:,} bytes, SHA-256 {sha256} (unverified: NVIDIA "
        f"publishes none), imported to {folder}"
    )
    return row | {"files": 1, "bytes": size, "sha256": sha256}
