"""Parts of Hugging Face's cache: staged where there is a network, offline ever after.

What is staged is pinned by its commit, and each file by the checksum that names its blob. The
cache is huggingface_hub's own (HF_HOME), so other programs find the files there as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from huggingface_hub import (
    HfApi,
    RepoFile,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from safetensors import SafetensorError, safe_open

from stack.nets.weights import STEMS, half_patterns, index_name, variant_of, weights_name
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.util.retry import reason

REMEDY = "run python -m stack fetch RECIPE where there is a network"

Faults = Iterator[tuple[str, str]]
"""Files that are missing or damaged, as (name, what is wrong)."""


@dataclass(frozen=True)
class Part:
    """What is used of a repository.

    Args:
        field, revision_field: of the recipe, which name it and its commit, for messages.
        wanted: patterns of its files. faults: what a folder lacks or has damaged, as far as its
            contents tell. first: the file that it cannot be without.
    """

    field: str
    revision_field: str
    wanted: tuple[str, ...]
    faults: Callable[[Path], Faults]
    first: str


@dataclass(frozen=True)
class Staged:
    """A part that is whole in the cache: its folder, its files and their bytes."""

    folder: Path
    files: int
    bytes: int


def from_hub(path: str) -> bool:
    """Whether a hub id is meant: no folder or file of that name, and org/name in form."""
    if Path(path).exists() or "/" not in path:
        return False
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def cached_folder(part: Part, path: str, revision: str) -> Path:
    """The folder of a part of a hub id's commit; the network is never asked.

    Raises:
        UserError: it is not staged, or a staged file is missing or cut short.
    """
    folder = _snapshot(part, path, revision)
    if folder is None:
        told = f"is not in the cache {constants.HF_HUB_CACHE}"
    elif fault := next(
        chain(_unlisted(folder, listing(part, path, revision)), part.faults(folder)), None
    ):
        told = f"in the cache is not whole: {folder}/{': '.join(fault)}"
    else:
        return folder
    raise UserError(f"{part.field}: {path}: revision {revision} {told}; {REMEDY}")


def cached_fault(part: Part, path: str, revision: str, *, hashed: bool = True) -> str | None:
    """The first thing that is missing or damaged of a part, in one line; None if it is whole.

    Args:
        hashed: read every file and compare its checksum; else sizes, and headers of weights.
    """
    folder = _snapshot(part, path, revision)
    if folder is None:
        return f"{path}: revision {revision}: not in the cache {constants.HF_HUB_CACHE}"
    found = next(_damaged(part, path, revision, folder, hashed), None)
    return found and f"{folder}/{found[0]}: {found[1]}"


def stage_part(part: Part, path: str, revision: str) -> Staged:
    """Bring what is missing or damaged of a hub id's commit into the cache, and check every file.

    A transfer that breaks off goes on where it was, several times in one call; after that, files
    that are whole are kept, and the others begin anew.

    Raises:
        UserError: no network, no such repository or commit, no access, or the part is not whole.
    """
    online(f"{part.field}: {path}")
    with _in_one_line(part, path, revision):
        for _ in range(2):  # What there is in half precision alone, the first call tells.
            patterns = _patterns(part, path, revision)
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
        damaged = dict(_damaged(part, path, revision, folder))
        for name in damaged:
            hf_hub_download(path, name, revision=revision, force_download=True)
    if damaged and (told := cached_fault(part, path, revision)):
        raise UserError(f"{part.field}: {path}: {told}, though fetched anew")
    files = listing(part, path, revision)
    return Staged(folder, len(files), sum(file.size for file in files))


def online(what: str) -> None:
    """Refuse to ask the hub where the environment says that there is none.

    Raises:
        UserError: HF_HUB_OFFLINE; begins with ``what``.
    """
    if constants.is_offline_mode():
        raise UserError(
            f"{what}: HF_HUB_OFFLINE is set, so nothing can be fetched; unset it (and "
            "TRANSFORMERS_OFFLINE) for this command"
        )


def current_commit(path: str) -> str | None:
    """The commit that a hub id's main branch is at; None where the hub does not tell, or is not
    to be asked."""
    if constants.is_offline_mode():
        return None
    try:
        return HfApi().model_info(path).sha
    except (OSError, HTTPError):
        return None


@contextmanager
def _in_one_line(part: Part, path: str, revision: str) -> Iterator[None]:
    """Errors of the hub and of the network as UserErrors."""
    name = f"{part.field}: {path}"
    try:
        yield
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{path}"
        told = f"gated; accept its terms at {page}, then run hf auth login or set HF_TOKEN"
        raise UserError(f"{name}: {told}") from None
    except RepositoryNotFoundError:
        told = f"no such repository at {constants.ENDPOINT}, or a private one (see hf auth login)"
        raise UserError(f"{name}: {told}") from None
    except RevisionNotFoundError:
        raise UserError(f"{part.revision_field}: {revision}: not a commit of {path}") from None
    except RemoteEntryNotFoundError as error:
        file = str(error.response.url).rpartition(f"/{revision}/")[2]
        raise UserError(f"{name}: revision {revision} has no {file}") from None
    except (OSError, HTTPError, RuntimeError) as error:  # The last are hf_xet's.
        # Without the query, in which signed addresses carry their signature.
        told = re.sub(r"\?[^\s'\"]+", "", reason(error.__cause__ or error))
        raise UserError(f"{name}: {told}; whole files are kept, so run this again") from None


def _snapshot(part: Part, path: str, revision: str) -> Path | None:
    """The folder in the cache of a hub id's commit, whole or not."""
    try:
        return Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=_patterns(part, path, revision),
                local_files_only=True,
            )
        )
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None


def listing(part: Part, path: str, revision: str) -> list[RepoFile]:
    """The wanted files of a commit with their sizes; empty if the cache does not tell."""
    patterns = _patterns(part, path, revision)
    files = _tree(path, revision)
    return list(filter_repo_objects(files, allow_patterns=patterns, key=lambda file: file.path))


def _patterns(part: Part, path: str, revision: str) -> list[str]:
    """Of the files that are wanted; weights in half precision only where the commit has no others,
    as far as the cache tells what it has."""
    halves = half_patterns(file.path for file in _tree(path, revision))
    wanted = [name for name in halves if f"{name}/{weights_name(STEMS[name])}" in part.wanted]
    return [*part.wanted, *(pattern for name in wanted for pattern in halves[name])]


def _tree(path: str, revision: str) -> list[RepoFile]:
    """All files of a commit; none if the cache does not tell."""
    try:
        return get_cached_repo_tree(path, revision=revision)
    except CachedRepoTreeNotFoundError:
        return []


def _damaged(part: Part, path: str, revision: str, folder: Path, hashed: bool = True) -> Faults:
    """Every staged file that is not the commit's, as (name, what is wrong)."""
    files = listing(part, path, revision)
    if not files:
        yield part.first, "the cache does not know the commit's files"
        return
    wrong = dict(_unlisted(folder, files))
    yield from wrong.items()
    for file in files:
        if hashed and file.path not in wrong and (told := _blob_fault(folder / file.path)):
            yield file.path, told
    yield from ((name, told) for name, told in part.faults(folder) if name not in wrong)


def _unlisted(folder: Path, files: list[RepoFile]) -> Faults:
    """Files of a commit that are missing or of another size."""
    for file in files:
        here = folder / file.path
        if not here.is_file():
            yield file.path, "missing"
        elif (size := here.stat().st_size) != file.size:
            yield file.path, f"{size} bytes instead of {file.size}"


def _blob_fault(path: Path) -> str | None:
    """Whether a file is its blob, which is named by its SHA-256, or if small by git's SHA-1."""
    if not path.is_symlink():
        return "no link to a blob with its checksum; HF_HOME must be on a disk that has links"
    wanted = path.readlink().name
    if len(wanted) == 64:
        found = sha256_file(path)
    else:
        data = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return None if found == wanted else "damaged: not of the commit's checksum"


def json_fault(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return "missing"
    except ValueError:
        return "not JSON"
    return None


def weight_faults(folder: Path, stem: str) -> Faults:
    """Faults of a component's weights: of one file, or of those that an index lists; of a
    pipeline's also those in half precision, where there are no others."""
    variant = variant_of(folder)
    index, names = folder / index_name(stem, variant), [weights_name(stem, variant)]
    if index.is_file():
        if told := json_fault(index):
            yield index.name, told
            return
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            yield name, "missing"
            continue
        try:
            with safe_open(folder / name, "pt") as weights:  # Its header must fit its size.
                weights.keys()
        except (SafetensorError, OSError) as error:
            yield name, f"damaged ({reason(error)})"
