"""`data_prep stats`: what is in a folder, and what became of the rows that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.filter.summary import SUMMARY
from data_prep.shards import Tally
from data_prep.stats.folders import Found, find
from data_prep.stats.page import page
from data_prep.stats.rows import Rows
from data_prep.stats.samples import Looks, Place, count, look
from data_prep.stats.sheet import tiles
from stack.util.errors import UserError
from stack.util.files import read_json, write_atomic


def stats(
    folder: Path, *, html: Path | None = None, sheet: int = 48, seed: int = 0
) -> dict[str, Any]:
    """The numbers of a folder of shards, of a download in parts, or of what `filter` has made.

    `rows` are those of the filter's input if it is known, else of the download, else the samples;
    `kept` those that the filter left; `states` those that the download was given.

    Args:
        html: also write a page there, with the pictures of `sheet` samples chosen by `seed`.

    Raises:
        UserError: no such folder, none of these, or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    rows, places = Rows(), []
    found = find(folder, rows)
    if found:
        places = [(part.path, entry) for part in found.parts for entry in part.shards]
        told = _of_shards(found, rows, places)
    elif (folder / SUMMARY).is_file():
        told = _of_filter(read_json(folder / SUMMARY))
    else:
        raise UserError(f"{folder}: not a folder of shards, of parts or of filtered rows")
    if html:
        # Text of the web may hold halves of characters.
        text = page(folder.resolve().name, told, tiles(places, sheet, seed))
        write_atomic(html, text.encode(errors="replace"))
    return told


def _of_shards(found: Found, rows: Rows, shards: list[Place]) -> dict[str, Any]:
    samples, states = count(shards), rows.by_state()
    whole = rows.input or (sum(states.values()) if states else samples)
    tally = Tally()
    for part in found.parts:
        tally.add(part.tally)
    return {
        "rows": whole,
        "kept": whole - sum(rows.dropped.values()),
        "dropped": rows.dropped,
        "states": states,
        "samples": samples,
        "shards": len(shards),
        "unfinished": bool(found.missing) or any(part.unfinished for part in found.parts),
        "parts": _parts(found) if found.names else None,
        "reasons": rows.by_reason(),
        "hosts": rows.by_host(),
        "fields": dict(sorted(tally.fields.items())),
        "counts": dict(sorted(tally.counts.items())),
        "resolution": _one({part.resolution for part in found.parts if part.shards}),
        **look(shards).told(),
    }


def _of_filter(summary: dict[str, Any]) -> dict[str, Any]:
    """The same names, as far as there is something to tell."""
    return {
        **{name: summary[name] for name in ("rows", "kept", "dropped")},
        **{"states": {}, "samples": 0, "shards": 0, "unfinished": False, "parts": None},
        **{"reasons": {}, "hosts": [], "fields": {}, "counts": {}, "resolution": None},
        **Looks().told(),
    }


def _parts(found: Found) -> dict[str, Any]:
    return {
        "expected": len(found.names),
        "missing": found.missing,
        "unfinished": [part.path.name for part in found.parts if part.unfinished],
        "empty": [part.path.name for part in found.parts if not part.shards],
    }


def _one(sides: set[int | None]) -> int | None:
    """The side of all pictures, if it is the same."""
    return sides.pop() if len(sides) == 1 else None
