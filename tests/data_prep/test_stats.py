"""`data_prep stats`: every row and every sample is counted once, whatever state a folder is in."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.download.ledger import LEDGER, Ledger, Record
from data_prep.download.outcome import FAILED, REFUSED, SAVED
from data_prep.shards import Sample, ShardFolder, Tally
from data_prep.stats import lines, stats
from data_prep.stats.rows import host_of
from data_prep.stats.samples import RATIOS, SIDES, TOKENS, WORDS
from stack.data.decode import encode_npy
from stack.data.index import MANIFEST, Manifest
from stack.util.errors import UserError

DROPPED = {"short_side": 30, "aesthetic_score": 10}
FATES = {0: (FAILED, "timeout"), 1: (REFUSED, "http_404"), 2: (REFUSED, "too_small")}
"""What becomes of the first rows of a part; the others are saved."""


def sample(number: int, **fields: bytes) -> Sample:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(buffer, "PNG")
    about = {"original_width": 640 + number, "original_height": 512}
    made = {"png": buffer.getvalue(), "txt": b"a photo", "json": json.dumps(about).encode()}
    return f"{number:09d}", {**made, **fields}


def shards(folder: Path, samples: list[Sample], *, each: int = 10, **known: Any) -> ShardFolder:
    """A finished folder of shards with `each` samples."""
    made = ShardFolder(folder, {"verb": "test"})
    for n in range(0, len(samples), each):
        tally = Tally(sizes=Counter({"8x8": len(samples[n : n + each])}))
        made.write(f"{n // each:06d}.tar", samples[n : n + each], tally)
    made.finish(**known)
    return made


def part(folder: Path, start: int, stop: int, *, known: int | None = None, **about: Any) -> Path:
    """A part of a download of which the ledger knows the first `known` rows."""
    known = stop - start if known is None else known
    records, saved = [], []
    for n, row in enumerate(range(start, start + known)):
        state, reason = FATES.get(n, (SAVED, None))
        host = ("a.example", "B.example:8080", "c.example")[row % 3]
        url = f"https://{host}/{row}.png"
        shard = "000000.tar" if state == SAVED else None
        records.append(Record(row, row, url, None, state, reason, 200, 1, 1, None, shard))
        if state == SAVED:
            saved.append(sample(row))
    made = shards(folder, saved, each=len(saved))
    if known < stop - start:
        (folder / MANIFEST).unlink()
    said = {"origin": {}, "span": [start, stop], "pass": 1, "open": known < stop - start}
    with Ledger(folder, {**said, "dropped": DROPPED, "input_rows": 100, **about}) as ledger:
        ledger.commit(records, (made.entries["000000.tar"], made.tally))
    return folder


def test_a_download_is_told_from_its_ledger(tmp_path):
    found = stats(part(tmp_path / "out", 0, 60))
    assert (found["rows"], found["dropped"], found["kept"]) == (100, DROPPED, 60)
    states = {"saved": 57, "failed": 1, "refused": 2, "blocked": 0, "forgotten": 0, "pending": 0}
    assert found["states"] == states
    assert found["reasons"] == {
        "failed": {"timeout": 1},
        "refused": {"http_404": 1, "too_small": 1},
    }
    assert (found["samples"], found["shards"], found["resolution"]) == (57, 1, 8)
    assert (found["unfinished"], found["parts"]) == (False, None)
    assert found["hosts"] == [
        {"host": name, "rows": 20, "saved": 19, "share": 0.95}
        for name in ("a.example", "b.example", "c.example")
    ]


def test_an_unfinished_download_has_rows_that_are_pending(tmp_path):
    folder = part(tmp_path / "out", 0, 60, known=20)
    found = stats(folder)
    assert found["unfinished"]
    assert (found["states"]["pending"], sum(found["states"].values())) == (40, 60)
    assert (found["samples"], found["fields"]["png"], found["resolution"]) == (17, 17, 8)
    assert "Unfinished: 40 rows pending." in lines(found)


def test_a_download_without_a_filter_counts_its_own_rows(tmp_path):
    found = stats(part(tmp_path / "out", 5, 25, dropped={}, input_rows=None))
    assert (found["rows"], found["kept"], found["dropped"]) == (20, 20, {})


def test_an_open_pass_is_unfinished_though_every_row_is_known(tmp_path):
    folder = part(tmp_path / "out", 0, 20)
    with Ledger(folder) as ledger:
        ledger.note(open=True)
    assert stats(folder)["unfinished"]


@pytest.mark.parametrize("merged", [False, True])
def test_parts_are_summed_and_the_filter_counted_once(tmp_path, merged):
    names = [f"part-{n:05d}-of-00003" for n in range(3)]
    for n, name in enumerate(names):
        part(tmp_path / name, 20 * n, 20 * n + 20)
    if merged:
        entries = [
            entry.model_copy(update={"name": f"{name}/{entry.name}"})
            for name in names
            for entry in Manifest.read(tmp_path / name).shards
        ]
        _write_manifest(tmp_path, entries)
    found = stats(tmp_path)
    assert (found["rows"], found["kept"], sum(found["states"].values())) == (100, 60, 60)
    assert (found["samples"], found["shards"], found["looked_at"]) == (51, 3, 51)
    assert found["states"]["saved"] == 51
    assert sum(host["rows"] for host in found["hosts"]) == 60
    nothing = {"missing": [], "unfinished": [], "empty": []}
    assert (found["parts"], found["unfinished"]) == ({"expected": 3, **nothing}, False)


def _write_manifest(folder: Path, entries: list[Any]) -> None:
    from stack.data.index import fingerprint

    Manifest(
        samples=sum(entry.samples for entry in entries),
        fields={"png": sum(entry.samples for entry in entries)},
        fingerprint=fingerprint(entries),
        shards=tuple(entries),
    ).write(folder)


def test_shards_in_subfolders_without_manifests_are_those_of_the_manifest_above(tmp_path):
    name = "part-00000-of-00002"
    made = shards(tmp_path / name, [sample(n) for n in range(5)])
    entry = made.entries["000000.tar"].model_copy(update={"name": f"{name}/000000.tar"})
    (tmp_path / name / MANIFEST).unlink()
    _write_manifest(tmp_path, [entry])
    found = stats(tmp_path)
    assert (found["rows"], found["samples"], found["looked_at"]) == (5, 5, 5)
    assert (found["parts"], found["states"]) == (None, {})


def test_parts_that_are_missing_unfinished_or_empty_are_named(tmp_path):
    names = [f"part-{n:05d}-of-00005" for n in range(5)]
    part(tmp_path / names[0], 0, 10)
    part(tmp_path / names[1], 10, 20, known=5)
    (tmp_path / names[2]).mkdir()
    (tmp_path / names[4]).mkdir()
    about = {"origin": {}, "span": [40, 43], "pass": 1, "open": False}
    with Ledger(tmp_path / names[4], about) as ledger:
        gone = [
            Record(n, n, None, None, REFUSED, "no_url", None, 0, 1, None, None) for n in (40, 41)
        ]
        ledger.commit(
            [*gone, Record(42, 42, None, None, FAILED, "dns", None, 1, 1, None, None)], None
        )
    found = stats(tmp_path)
    assert found["parts"] == {
        "expected": 5,
        "missing": names[2:4],
        "unfinished": names[1:2],
        "empty": names[4:],
    }
    assert found["unfinished"]
    assert sum(found["states"].values()) == 23
    text = "\n".join(lines(found))
    assert f"2 of 5 parts missing: {names[2]}, {names[3]}." in text
    assert "in other parts" in text


def test_a_download_that_saved_nothing_is_told(tmp_path):
    about = {"origin": {}, "span": [0, 0], "pass": 1, "open": False}
    folder = tmp_path / "out"
    folder.mkdir()
    Ledger(folder, about)
    found = stats(folder, html=tmp_path / "page.html")
    assert (found["rows"], found["samples"], found["unfinished"]) == (0, 0, False)
    assert lines(found)


def test_what_the_filter_made_has_rows_and_rules_only(tmp_path):
    summary = {"rows": 100, "kept": 60, "dropped": DROPPED, "files": ["rows.parquet"]}
    (tmp_path / "filter.json").write_text(json.dumps(summary))
    found = stats(tmp_path, html=tmp_path / "page.html")
    assert [found[name] for name in ("rows", "kept", "dropped")] == [100, 60, DROPPED]
    assert (found["states"], found["samples"], found["shards"]) == ({}, 0, 0)
    assert [line.split()[0] for line in lines(found)] == ["rows", *DROPPED, "kept"]


def test_histograms_are_those_of_numpy(tmp_path):
    rng = np.random.default_rng(0)
    sizes, words = rng.integers(100, 5000, (64, 2)), rng.integers(0, 120, 64)
    tokens = rng.integers(1, 77, 64)
    made = []
    for n in range(64):
        width, height = sizes[n].tolist()
        ids = np.full(77, 49407, np.uint16)
        ids[: tokens[n]] = rng.integers(0, 49000, tokens[n])
        about = {"original_width": width, "original_height": height}
        text = " ".join([f"w{n}"] * words[n]).encode()
        fields = {"json": json.dumps(about).encode(), "txt": text, "tokens.npy": encode_npy(ids)}
        made.append(sample(n, **fields))
    shards(tmp_path / "out", made, counts={"truncated": 7})
    found = stats(tmp_path / "out")
    for edges, values, told in (
        (SIDES, sizes.min(1), found["resolutions"]["shorter_side"]),
        (RATIOS, sizes[:, 0] / sizes[:, 1], found["resolutions"]["aspect_ratio"]),
        (WORDS, words, found["captions"]["words"]),
        (TOKENS, tokens + 1, found["captions"]["tokens"]),
    ):
        counts, _ = np.histogram(values, [*edges, np.inf])
        assert [bucket["samples"] for bucket in told["buckets"]] == counts.tolist()
        assert [bucket["from"] for bucket in told["buckets"]] == list(edges)
        assert told["median"] == np.median(values)
        assert told["samples"] == 64
    assert found["empty_captions"] == (words == 0).sum()
    assert found["duplicate_captions"] == 0
    assert (found["counts"], found["rows"]) == ({"truncated": 7}, 64)


def test_captions_that_repeat_are_a_share_of_those_that_say_something(tmp_path):
    texts = [b"a", b"a", b"b", b"", b"  ", b"\xff"]
    shards(tmp_path / "out", [sample(n, txt=text) for n, text in enumerate(texts)])
    found = stats(tmp_path / "out")
    assert (found["empty_captions"], found["duplicate_captions"]) == (2, 0.25)


def test_a_part_of_the_samples_is_spread_evenly_over_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.stats.samples._MOST", 10)
    made = [sample(n, txt=b"word " * (n // 10 + 1)) for n in range(100)]
    shards(tmp_path / "out", made)
    found = stats(tmp_path / "out")
    assert (found["looked_at"], found["samples"]) == (10, 100)
    assert found["captions"]["words"]["mean"] == 5.5
    assert any("of 10 samples looked at" in line for line in lines(found))


def test_folders_that_cannot_be_told_are_named_in_one_line(tmp_path):
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            stats(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "nowhere: no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    assert "other: not a folder of shards" in refused(tmp_path / "other")
    for total in (2, 3):
        (tmp_path / f"mixed/part-00000-of-{total:05d}").mkdir(parents=True)
    assert "mixed: holds parts of 2 and parts of 3" in refused(tmp_path / "mixed")
    (tmp_path / "other" / LEDGER).write_bytes(b"no database, whatever its name says")
    assert "ledger.sqlite: not a whole ledger" in refused(tmp_path / "other")


@pytest.mark.parametrize("damage", ["cut", "gone", "bit"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    shards(tmp_path, [sample(n) for n in range(20)])
    tar = tmp_path / "000001.tar"
    data = bytearray(tar.read_bytes())
    start = int(np.load(tmp_path / "000001.index.npy")["txt"]["offset"][3])
    data[start] ^= 1
    tar.write_bytes(data if damage == "bit" else data[:2000])
    if damage == "gone":
        tar.unlink()
    with pytest.raises(UserError, match=r"000001\.tar: "):
        stats(tmp_path)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.COM/a.jpg", "example.com"),
        ("http://user:secret@h.example:81?x@y", "h.example"),
        (" HTTP://h.example#@b", "h.example"),
        ("http://[2001:DB8::1]:80/x", "[2001:db8::1]"),
        ("http:///x", None),
        ("h.example/x", None),
        ("", None),
        (None, None),
    ],
)
def test_the_host_of_a_url(url, host):
    assert host_of(url) == host


def test_lines_fit_80_columns_and_steer_no_terminal(tmp_path):
    folder = part(tmp_path / "out", 0, 20)
    names = ["x" * 300 + ".example", "\x1b[31mred", "名" * 60]
    with Ledger(folder) as ledger:
        ledger.commit(
            [
                Record(n, n, f"http://{name}/", None, FAILED, name, None, 1, 1, None, None)
                for n, name in enumerate(names)
            ],
            None,
        )
    found = stats(folder)
    assert {host["host"] for host in found["hosts"]} > set(names)
    text = lines(found)
    assert max(map(len, text)) <= 80
    assert all(line.isascii() and (line.isprintable() or not line) for line in text)
