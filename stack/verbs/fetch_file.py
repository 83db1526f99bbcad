"""One file from the web, by its checksum where one is known."""

from __future__ import annotations

import os
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

from stack.util.errors import UserError
from stack.util.files import fsync, sha256_file
from stack.util.retry import retry

_PIECE = 1 << 20
_TIMEOUT = urllib3.Timeout(connect=15, read=60)
_REDIRECTS = urllib3.Retry(5, connect=0, read=0, status=0, other=0, redirect=5)
"""Trying again is `retry`'s."""


def download(url: str, path: Path, sha256: str | None, *, retries: int = 6) -> str:
    """Bring a file to ``path``, whole and checked or not at all; what breaks off goes on where it
    was, also in a later call. Returns its SHA-256.

    Args:
        sha256: None where nobody has published one: then the file has the length that the server
            told, and no more is known of it.

    Raises:
        UserError: no network, no such file there, or one with another checksum.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as manager:
        retry(
            lambda: _append(manager, url, part),
            url,
            retries=retries,
            transient=(OSError, HTTPError),
        )
    found = sha256_file(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        raise UserError(f"{url}: its SHA-256 is {found}, not {sha256}; look whether it has moved")
    fsync(part)
    os.replace(part, path)
    fsync(path.parent)
    return found


def _append(manager: urllib3.PoolManager, url: str, part: Path) -> None:
    """The rest of a file, or all of it where the server has no parts."""
    begun = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={begun}-"} if begun else {}
    answer = manager.request("GET", url, headers=headers, preload_content=False, retries=_REDIRECTS)
    try:
        if answer.status == 416:  # Nothing is left to send.
            return
        if answer.status not in (200, 206):
            told = f"{url}: HTTP {answer.status} {answer.reason or ''}".rstrip()
            if answer.status < 500 and answer.status not in (408, 429):
                raise UserError(f"{told}; look whether it has moved")
            raise OSError(told)
        with part.open("ab" if answer.status == 206 else "wb") as file:
            # What is there, not whole pieces: of a line that breaks, nothing is lost.
            while piece := answer.read1(_PIECE):
                file.write(piece)
        if answer.length_remaining:
            raise OSError(f"{url}: broken off {answer.length_remaining} bytes before its end")
    finally:
        answer.release_conn()
