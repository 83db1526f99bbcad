"""`data_prep download`: the pictures of rows with URLs, as shards.

Rows are fetched many at a time, and taken into shards in their order, so that equal answers of the
servers make equal bytes. The first pass goes over all rows; each further command is a pass over
those that failed for a reason that may pass, into further shards. A kill costs the shard that was
being filled: the ledger knows where the one before it ended.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from data_prep.blocklist import Blocklist
from data_prep.card import write_card
from data_prep.coyo import Rows
from data_prep.download.crew import Crew, Got
from data_prep.download.fetch import Fetcher, Limits
from data_prep.download.ledger import LEDGER, Ledger, Record, has_ledger
from data_prep.download.outcome import BLOCKED, FORGOTTEN, REFUSED, SAVED, STATES, Miss
from data_prep.download.picture import Picture, Target
from data_prep.download.rows import NEEDED, Row, part_of, read
from data_prep.filter.summary import SUMMARY
from data_prep.shards import CODE, Sample, Tally, make_room, manifest_of, sole_writer, write_shard
from stack.data.index import Manifest, check_shards
from stack.util.files import read_json
from stack.util.progress import Bar, progress

log = logging.getLogger(__name__)

TOMBSTONES = "tombstones.txt"
"""What `data_prep forget` has taken out of a folder, in the format of a blocklist."""

_RECORDS = 4096
"""Rows without a picture that are put down before a shard begins."""

USER_AGENT = "f-distill/1.0 (training data for research; set --user-agent to say whose)"


@dataclass(frozen=True)
class Settings:
    """`target` and `samples_per_shard` make the bytes what they are; the rest may differ between
    two runs on one folder."""

    target: Target
    samples_per_shard: int = 1000
    limits: Limits = field(default_factory=Limits)
    threads: int = 64
    user_agent: str = USER_AGENT
    blocklists: Sequence[Path] = ()


def download(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Fetch the rows of parquet files with the columns id, url and text, or part k of n of them,
    k from 0, into shards; what becomes of each row stands in OUT/ledger.sqlite.

    Raises:
        UserError: rows that cannot be read, or a folder made with other settings or in use.
    """
    rows = Rows.open(source, NEEDED)
    blocked = Blocklist.read(settings.blocklists)
    with (
        sole_writer(out),
        _ledger(rows, source, out, settings, part, overwrite) as ledger,
    ):
        check_shards(out, [entry for entry, _ in ledger.shards()])
        if not ledger.about["open"] and ledger.to_retry(ledger.about["pass"] + 1):
            ledger.note(**{"pass": ledger.about["pass"] + 1, "open": True})
        if ledger.about["open"]:
            _Pass(rows, out, settings, ledger, blocked).run()
        manifest = write_manifest(out, ledger)
        ledger.note(open=False)
        return manifest


def _ledger(
    rows: Rows,
    source: Path,
    out: Path,
    settings: Settings,
    part: tuple[int, int] | None,
    overwrite: bool,
) -> Ledger:
    """The ledger of a folder that goes on, or of a new one."""
    origin = {
        "verb": "download",
        "input": rows.fingerprint,
        "part": f"{part[0]}/{part[1]}" if part else None,
        "samples_per_shard": settings.samples_per_shard,
        **asdict(settings.target),
    }
    there = {}
    if has_ledger(out) and not overwrite:
        with Ledger(out) as ledger:
            there = ledger.about["origin"]
    if there != origin:
        if not there:
            (out / LEDGER).unlink(missing_ok=True)
        make_room(out, origin, there, overwrite=overwrite)
    filtered = read_json(source / SUMMARY) if (source / SUMMARY).is_file() else {}
    about = {
        "origin": origin,
        "span": part_of(rows.total, part),
        "input_rows": filtered.get("rows"),
        "dropped": filtered.get("dropped", {}),
        "pass": 0,
        "open": True,
        "replaced": [],
    }
    return Ledger(out, about)


class _Pass:
    """Over the rows that are due: all that are not known yet, or those that failed before."""

    def __init__(
        self, rows: Rows, out: Path, settings: Settings, ledger: Ledger, blocked: Blocklist
    ) -> None:
        self.rows, self.out, self.settings = rows, out, settings
        self.ledger, self.blocked = ledger, blocked
        tombstones = out / TOMBSTONES
        self.forgotten = Blocklist.read([tombstones] if tombstones.is_file() else [])
        self.number = ledger.about["pass"]
        there = [entry.name for entry, _ in ledger.shards()]
        taken = [int(name[:6]) for name in (*there, *ledger.about["replaced"])]
        self.next_shard = max(taken, default=-1) + 1

    def run(self) -> None:
        settings = self.settings
        due, total = self._due()
        fetcher = Fetcher(settings.limits, settings.user_agent)
        title = f"download, pass {self.number}" if self.number else "download"
        with (
            progress(title, total=total) as bar,
            Crew(fetcher, settings.target, settings.threads) as crew,
        ):
            self._take(crew.results(due, self._skip), bar)

    def _due(self) -> tuple[Iterator[Row], int]:
        start, stop = self.ledger.about["span"]
        if self.number:
            again = self.ledger.to_retry(self.number)
            return read(self.rows, start, stop, again), len(again)
        last = self.ledger.last_row()
        start = start if last is None else last + 1
        return read(self.rows, start, stop), stop - start

    def _skip(self, row: Row) -> Miss | None:
        if self.forgotten.blocks(row.id, row.url, row.phash):
            return Miss(FORGOTTEN, None)
        if self.blocked.blocks(row.id, row.url, row.phash):
            return Miss(BLOCKED, "blocklist")
        return None if row.url else Miss(REFUSED, "no_url")

    def _take(self, results: Iterator[tuple[Row, Got]], bar: Bar) -> None:
        """Fill one shard after the other."""
        records: list[Record] = []
        samples: list[Sample] = []
        digests: set[bytes] = set()
        saved = 0
        for met, (row, got) in enumerate(results, 1):
            found = got.found
            if isinstance(found, Picture):
                # Many URLs with the same bytes: a notice in the place of what was there.
                if found.sha256 in digests or self.ledger.has(found.sha256):
                    found = Miss(REFUSED, "duplicate")
                else:
                    digests.add(found.sha256)
                    samples.append(_sample(row, found))
                    saved += 1
            records.append(_record(row, found, got.requests, self.number))
            bar.advance(saved=saved / met)
            full = len(samples) == self.settings.samples_per_shard
            if full or (not samples and len(records) >= _RECORDS):
                self._commit(records, samples)
                records, samples, digests = [], [], set()
        self._commit(records, samples)

    def _commit(self, records: list[Record], samples: list[Sample]) -> None:
        name, tally = f"{self.next_shard:06d}.tar", Tally()
        entry = write_shard(self.out, name, samples, tally)
        if entry is None:
            self.ledger.commit(records, None)
            return
        placed = [replace(r, shard=name) if r.state == SAVED else r for r in records]
        self.ledger.commit(placed, (entry, tally))
        self.next_shard += 1


def _sample(row: Row, picture: Picture) -> Sample:
    about = {
        **row.about,
        "original_width": picture.width,
        "original_height": picture.height,
        "crop_box": picture.box,
        "sha256": picture.sha256.hex(),
    }
    described = json.dumps(about, ensure_ascii=False).encode()
    fields = {picture.extension: picture.data, "txt": row.text.encode(), "json": described}
    return f"{row.number:09d}", fields


def _record(row: Row, found: Picture | Miss, requests: int, number: int) -> Record:
    miss = found if isinstance(found, Miss) else Miss(SAVED, None)
    forgotten = miss.state == FORGOTTEN
    return Record(
        row=row.number,
        id=row.id,
        url=None if forgotten else row.url,
        phash=None if forgotten else row.phash,
        state=miss.state,
        reason=miss.reason,
        status=miss.status,
        requests=requests,
        passed=number,
        digest=found.sha256 if isinstance(found, Picture) else None,
        shard=None,
    )


def write_manifest(out: Path, ledger: Ledger) -> Manifest:
    """The manifest and the card of a folder, from its ledger."""
    shards, states = ledger.shards(), ledger.states()
    if not shards:
        common = ", ".join(f"{n} {why}" for (_, why), n in ledger.reasons().most_common(3))
        log.warning("%s: none of %d rows gave a picture (%s)", out, states.total(), common)
    tally = Tally()
    for _, found in shards:
        tally.add(found)
    manifest = manifest_of(
        (entry for entry, _ in shards),
        tally,
        origin=ledger.about["origin"],
        resolution=ledger.about["origin"]["resolution"],
        crop="centre",
        code={"download": CODE},
        replaced=tuple(ledger.about["replaced"]),
        counts={state: states[state] for state in STATES if state != SAVED and states[state]},
    )
    manifest.write(out)
    write_card(out, manifest)
    return manifest
