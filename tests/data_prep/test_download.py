"""Rows with URLs to shards: every row in one state, no bad picture, and the same bytes again."""

from __future__ import annotations

import io
import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_prep.download import connections
from data_prep.download.fetch import Limits
from data_prep.download.ledger import LEDGER, Ledger, Record
from data_prep.download.picture import Target
from data_prep.download.run import Settings, download
from data_prep.filter.summary import SUMMARY
from data_prep.shards import CARD
from stack.data.index import Manifest
from stack.util.errors import UserError
from tests.data_prep.picture_server import KINDS, PictureServer, pixels, rows_file, running

SIDE = 32
LIMITS = Limits(
    deadline=60.0, max_bytes=2 << 20, backoff=0.02, per_host=16, allow_private=True, attempts=2
)
SETTINGS = Settings(Target(SIDE), samples_per_shard=8, limits=LIMITS, threads=16)

SAVED = (
    *(
        "jpg",
        "exact",
        "exact_png",
        "png",
        "webp",
        "avif",
        "gif",
        "grey",
        "cmyk",
        "wide",
        "alpha",
        "palette",
    ),
    *("rotated", "busy", "flaky", "moved", "slow", "notice"),
)
MISSED = {
    "gone": ("refused", "http_410"),
    "missing": ("refused", "http_404"),
    "forbidden": ("refused", "http_403"),
    "html": ("refused", "not_a_picture"),
    "page": ("refused", "not_a_picture"),
    "garbage": ("refused", "not_a_picture"),
    "noai": ("refused", "opt_out"),
    "reserved": ("refused", "opt_out"),
    "loop": ("refused", "redirects"),
    "huge": ("refused", "too_large"),
    "truncated": ("refused", "damaged"),
    "corrupt": ("refused", "damaged"),
    "animated": ("refused", "animated"),
    "bomb": ("refused", "too_many_pixels"),
    "tiny": ("refused", "too_small"),
    "blank": ("refused", "blank"),
    "too_busy": ("failed", "http_429"),
    "broken": ("failed", "http_500"),
    "drip": ("failed", "timeout"),
    "drip_headers": ("failed", "timeout"),
    "cut": ("failed", "cut_short"),
    "hang_up": ("failed", "connection"),
    "bad_location": ("failed", "bad_answer"),
    "bad_retry": ("failed", "http_429"),
    "bad_length": ("refused", "not_a_picture"),
    "bad_chunk": ("failed", "bad_answer"),
    "endless_chunk": ("refused", "too_large"),
}
NOWHERE = {
    "ftp://example.org/x": ("refused", "scheme"),
    "data:image/png;base64,xx": ("refused", "scheme"),
    "http://": ("refused", "bad_url"),
    "nonsense": ("refused", "bad_url"),
    "http://[::bad/x": ("refused", "bad_url"),
    "http://127.0.0.1:1/x": ("failed", "no_connection"),
    "http://no-such-host.invalid/x": ("failed", "no_such_host"),
    "": ("refused", "no_url"),
    None: ("refused", "no_url"),
}


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


def records(out: Path) -> list[Record]:
    with Ledger(out) as ledger:
        return list(ledger.records())


def shards(out: Path) -> dict[str, bytes]:
    """Everything that is to be the same again."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name not in (LEDGER, ".lock")}


def samples(out: Path) -> list[dict]:
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def test_the_table_covers_what_the_server_can_do():
    assert {*SAVED, *MISSED, "inside"} == set(KINDS)


@pytest.fixture
def no_waiting(monkeypatch):
    """What drips is as slow as a second for a read of a few bytes, so that a deadline which no busy
    machine meets is one that a drip does; and no name server is asked."""
    received, resolve = connections._received, socket.getaddrinfo

    def slowly(count: int) -> int:
        connections._limits.deadline -= 1.0 if count < 32 else 0.0
        return received(count)

    def known(host, *args, **options):
        if host.endswith(".invalid"):
            raise socket.gaierror("unknown")
        return resolve(host, *args, **options)

    monkeypatch.setattr(connections, "_received", slowly)
    monkeypatch.setattr(socket, "getaddrinfo", known)


@pytest.mark.usefixtures("no_waiting")
def test_every_row_ends_in_one_state_and_no_bad_picture_in_a_shard(tmp_path, server):
    urls = [f"{server.url}/{kind}/{number}" for number in range(2) for kind in (*SAVED, *MISSED)]
    rows = rows_file(tmp_path / "rows.parquet", [*urls, *NOWHERE])
    manifest = download(rows, tmp_path / "out", SETTINGS)
    known = records(tmp_path / "out")
    assert [record.row for record in known] == list(range(len(urls) + len(NOWHERE)))
    found = defaultdict(list)
    for record in known:
        inside = (record.url or "").startswith(server.url)
        name = record.url.split("/")[3] if inside else record.url
        found[name].append((record.state, record.reason))
        assert (record.shard is None) == (record.state != "saved")
    expected = {kind: [("saved", None)] * 2 for kind in SAVED}
    expected |= {kind: [miss] * 2 for kind, miss in MISSED.items()}
    expected |= {url: [miss] for url, miss in NOWHERE.items()}
    # The same notice in two places is there once.
    expected["notice"] = [("saved", None), ("refused", "duplicate")]
    assert found == expected

    states = Counter(record.state for record in known)
    assert manifest.samples == states["saved"] == 2 * len(SAVED) - 1
    assert manifest.counts == {name: states[name] for name in ("failed", "refused")}
    assert [entry.samples for entry in manifest.shards] == [8, 8, 8, 8, 3]
    assert manifest.resolution == SIDE
    for sample in samples(tmp_path / "out"):
        (image,) = (sample[name] for name in ("jpg", "png", "webp") if name in sample)
        with Image.open(io.BytesIO(image)) as opened:
            assert (opened.size, opened.mode) == ((SIDE, SIDE), "RGB")
            assert np.ptp(np.asarray(opened)) > 20


def test_a_sample_says_what_it_was(tmp_path, server):
    urls = [f"{server.url}/{kind}/3" for kind in ("jpg", "exact", "rotated")]
    download(rows_file(tmp_path / "rows.parquet", urls), tmp_path / "out", SETTINGS)
    wide, exact, rotated = samples(tmp_path / "out")
    assert wide["txt"] == b"caption &amp; 0"
    about = json.loads(wide["json"])
    assert about.pop("sha256")
    assert about == {
        "id": 1000,
        "url": urls[0],
        "image_phash": "0" * 16,
        "original_width": 80,
        "original_height": 64,
        "crop_box": [8, 0, 72, 64],
    }
    turned = json.loads(rotated["json"])
    assert (turned["original_width"], turned["original_height"]) == (64, 80)
    assert turned["crop_box"] == [0, 8, 64, 72]
    # What fits is not encoded anew.
    assert exact["__key__"] == "000000001"
    with Image.open(io.BytesIO(exact["jpg"])) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels(3, 32, 32)).mean() < 4
    card = (tmp_path / "out" / CARD).read_text()
    assert "CC-BY-4.0" in card
    assert "3 in 1 shards" in card


def test_the_same_answers_make_the_same_bytes_whatever_the_order_of_their_coming(tmp_path, server):
    urls = [f"{server.url}/jpg/{number}" for number in range(30)]
    urls[3] = f"{server.url}/broken/0"
    rows = rows_file(tmp_path / "rows.parquet", urls)
    for name, threads in (("one", 1), ("many", 16)):
        download(rows, tmp_path / name, replace(SETTINGS, threads=threads))
    assert shards(tmp_path / "one") == shards(tmp_path / "many")
    assert [entry.samples for entry in Manifest.read(tmp_path / "one").shards] == [8, 8, 8, 5]


def test_a_further_run_asks_only_for_what_failed_and_adds_shards(tmp_path, server):
    kinds = ["jpg", "flaky", "missing", "busy", "jpg", "broken", "noai"]
    urls = [f"{server.url}/{kind}/{number}" for number, kind in enumerate(kinds)]
    rows = rows_file(tmp_path / "rows.parquet", urls)
    once = replace(SETTINGS, limits=replace(LIMITS, attempts=1))
    first = download(rows, tmp_path / "out", once)
    assert (first.samples, first.counts) == (2, {"failed": 3, "refused": 2})
    before = shards(tmp_path / "out")

    server.asked.clear()
    second = download(rows, tmp_path / "out", once)
    assert {path.split("/")[1] for path in server.asked} == {
        "flaky",
        "busy",
        "broken",
        "robots.txt",
    }
    assert (second.samples, second.counts) == (2 + 0, {"failed": 3, "refused": 2})
    server.asked.update({urls[n].removeprefix(server.url): 1 for n in (1, 3)})
    third = download(rows, tmp_path / "out", once)
    assert (third.samples, third.counts) == (4, {"failed": 1, "refused": 2})
    assert [entry.samples for entry in third.shards] == [2, 2]
    after = shards(tmp_path / "out")
    assert {name: after[name] for name in before if name.startswith("000000")} == {
        name: data for name, data in before.items() if name.startswith("000000")
    }
    assert [record.passed for record in records(tmp_path / "out")] == [0, 2, 0, 2, 0, 2, 0]


def test_a_run_with_nothing_left_to_ask_for_changes_nothing(tmp_path, server):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/1", f"{server.url}/gone/1"])
    download(rows, tmp_path / "out", SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    server.asked.clear()
    download(rows, tmp_path / "out", SETTINGS)
    assert not server.asked
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before


def test_blocked_rows_are_not_asked_for(tmp_path, server):
    urls = [f"{server.url}/jpg/{number}" for number in range(6)]
    blocklist = tmp_path / "blocked.txt"
    blocklist.write_text(f"{urls[1]}\nid:1003\n{4:016x}\n")
    rows = rows_file(tmp_path / "rows.parquet", urls)
    manifest = download(rows, tmp_path / "out", replace(SETTINGS, blocklists=[blocklist]))
    assert manifest.counts == {"blocked": 3}
    asked = {path for path in server.asked if path != "/robots.txt"}
    assert asked == {"/jpg/0", "/jpg/2", "/jpg/5"}


@pytest.mark.parametrize("server_robots", ["User-agent: f-distill\nDisallow: /jpg/1", None])
def test_robots_txt_is_asked_for_once_and_obeyed(tmp_path, server_robots):
    with running(PictureServer(robots=server_robots)) as server:
        urls = [f"{server.url}/jpg/{number}" for number in range(5)]
        rows = rows_file(tmp_path / "rows.parquet", urls)
        named = replace(SETTINGS, user_agent="f-distill (me@example.org)")
        manifest = download(rows, tmp_path / "out", named)
    assert server.asked["/robots.txt"] == 1
    assert server.agents == {"f-distill (me@example.org)"}
    assert manifest.samples == (4 if server_robots else 5)
    assert [r.reason for r in records(tmp_path / "out")][1] == (
        "robots_txt" if server_robots else None
    )


def test_a_host_is_not_asked_for_too_much_at_a_time(tmp_path, server):
    urls = [f"{server.url}/jpg/{number}" for number in range(40)]
    two = replace(SETTINGS, limits=replace(LIMITS, per_host=2))
    download(rows_file(tmp_path / "rows.parquet", urls), tmp_path / "out", two)
    assert server.at_once <= 2


def test_addresses_inside_are_refused_unless_allowed(tmp_path, server, monkeypatch, caplog):
    urls = [f"{server.url}/jpg/1", f"http://localhost:{server.server_address[1]}/jpg/2"]
    public = replace(SETTINGS, limits=replace(LIMITS, allow_private=False))
    rows = rows_file(tmp_path / "rows.parquet", urls)
    assert download(rows, tmp_path / "out", public).samples == 0
    assert "none of 2 rows gave a picture (2 private_address)" in caplog.text
    assert not server.asked
    # As if this machine were on the internet, which sends on to one that is not.
    from data_prep.download import connections

    monkeypatch.setattr(connections, "is_public", lambda address: address == "127.0.0.1")
    rows = rows_file(tmp_path / "more.parquet", [urls[0], f"{server.url}/inside/1"])
    download(rows, tmp_path / "more", public)
    assert [r.reason for r in records(tmp_path / "more")] == [None, "private_address"]


def test_what_filter_dropped_stands_in_the_ledger(tmp_path, server):
    rows_file(tmp_path / "rows/00000.parquet", [f"{server.url}/jpg/1"])
    (tmp_path / "rows" / SUMMARY).write_text('{"rows": 9, "kept": 1, "dropped": {"nsfw": 8}}')
    download(tmp_path / "rows", tmp_path / "out", SETTINGS)
    with Ledger(tmp_path / "out") as ledger:
        assert ledger.about["input_rows"] == 9
        assert ledger.about["dropped"] == {"nsfw": 8}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: replace(s, samples_per_shard=9), "samples_per_shard"),
        (lambda s: replace(s, target=Target(16)), "resolution"),
        (lambda s: replace(s, target=Target(SIDE, "png")), "format"),
    ],
)
def test_a_folder_made_with_other_settings_is_left_alone(tmp_path, server, change, name):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/1"])
    download(rows, tmp_path / "out", SETTINGS)
    before = shards(tmp_path / "out")
    with pytest.raises(UserError, match=f"out: holds shards made with another {name}; name a new"):
        download(rows, tmp_path / "out", change(SETTINGS))
    assert shards(tmp_path / "out") == before
    download(rows, tmp_path / "out", change(SETTINGS), overwrite=True)
    assert Manifest.read(tmp_path / "out").samples == 1
