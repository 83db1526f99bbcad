"""Which code made something."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from stack.util.files import sha256_file

STACK = Path(__file__).parent.parent


def code_hash(package: Path = STACK) -> str:
    """SHA-256 over the Python source below a folder, the package `stack` by default."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def code_version(package: Path) -> str:
    """The version of this project, and the beginning of the hash of the source below a folder."""
    return f"{version('f-distill')}+{code_hash(package)[:12]}"


def folder_hash(folder: Path) -> str:
    """SHA-256 over the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()
