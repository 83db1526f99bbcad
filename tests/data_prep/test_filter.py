"""`data_prep filter` as a whole: which rows are kept, what is written, and whose folder it is."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.blocklist import canonical
from data_prep.coyo import COLUMNS, Rows
from data_prep.filter import dedupe, scan, verdict, write
from data_prep.filter.run import filter_rows
from data_prep.filter.summary import Summary
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.data_prep.coyo_rows import make, random_table
from tests.data_prep.coyo_rows import write as write_table


@pytest.fixture
def source(tmp_path):
    """3000 rows in three files, their row groups of 300."""
    folder = tmp_path / "coyo"
    for number in range(3):
        table = random_table(1000, seed=number % 2, first=1000 * number)
        write_table(folder / f"part-{number:05d}.parquet", table, row_group_size=300)
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(scan, "SPAN", 500)
    monkeypatch.setattr(write, "_GROUP", 30)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_in(out: Path) -> pa.Table:
    return pq.read_table(sorted(out.glob("*.parquet")))


def expected(rows: list[dict]) -> tuple[list[int], Counter]:
    """Ids that the default rules keep, and rows dropped by rule, one row after the other."""
    limits = {
        "no_url": lambda row: row["url"],
        "no_text": lambda row: row["text"],
        "min_side": lambda row: min(row["width"], row["height"]) >= 512,
        "aspect": lambda row: 0.5 <= row["width"] / row["height"] <= 2,
        "word_count": lambda row: 3 <= row["word_count"] <= 75,
        "nsfw_score_opennsfw2": lambda row: row["nsfw_score_opennsfw2"] < 0.2,
        "watermark_score": lambda row: row["watermark_score"] < 0.2,
        "aesthetic_score_laion_v2": lambda row: row["aesthetic_score_laion_v2"] >= 5,
    }
    dropped, left = Counter(), []
    for row in rows:
        failed = next((name for name, passes in limits.items() if not passes(row)), None)
        dropped.update([failed] if failed else [])
        left += [] if failed else [row]
    clip = "clip_similarity_vitl14"
    threshold = np.quantile([row[clip] for row in left], 0.3, method="lower")
    seen: dict[str, set] = {"duplicate_url": set(), "duplicate_phash": set()}
    kept = []
    for row in left:
        if row[clip] < threshold:
            dropped[clip] += 1
        elif canonical(row["url"]) in seen["duplicate_url"]:
            dropped["duplicate_url"] += 1
        else:
            # A row that is dropped for its hash has shown its URL all the same.
            seen["duplicate_url"].add(canonical(row["url"]))
            if row["image_phash"] in seen["duplicate_phash"]:
                dropped["duplicate_phash"] += 1
            else:
                seen["duplicate_phash"].add(row["image_phash"])
                kept.append(row["id"])
    return kept, dropped


def test_it_keeps_what_a_plain_loop_keeps(source, tmp_path):
    out = tmp_path / "out"
    found = filter_rows(source, out, rows_per_file=100)
    table = pq.read_table(source)
    kept, dropped = expected(table.to_pylist())
    assert len(dropped) == 10
    assert {name: count for name, count in found.dropped.items() if count} == dropped
    assert (found.rows, found.kept) == (3000, len(kept))
    rows = rows_in(out)
    assert rows["id"].to_pylist() == kept
    assert rows.equals(table.filter(pa.compute.is_in(table["id"], pa.array(kept))))


def test_what_is_written(source, tmp_path):
    out = tmp_path / "out"
    found = filter_rows(source, out, rows_per_file=100)
    assert found.kept > 200
    about = json.loads((out / "filter.json").read_text())
    names = [f"{number:05d}.parquet" for number in range(-(-found.kept // 100))]
    assert sorted(path.name for path in out.glob("[!.]*")) == [*names, "filter.json"]
    assert [entry["name"] for entry in about["files"]] == names
    assert {entry["rows"] for entry in about["files"][:-1]} == {100}
    assert sum(entry["rows"] for entry in about["files"]) == found.kept
    for entry in about["files"]:
        meta = pq.read_metadata(out / entry["name"])
        assert sha256_file(out / entry["name"]) == entry["sha256"]
        assert max(meta.row_group(n).num_rows for n in range(meta.num_row_groups)) <= 30
        assert {f.name: f.type for f in meta.schema.to_arrow_schema()} == COLUMNS
    assert about["input"] == Rows.open(source, []).fingerprint
    assert about["rules"]["clip_similarity_vitl14"] == {"drop_lowest": 0.3}
    assert about["clip_threshold"] == found.threshold
    assert found.rows == found.kept + sum(found.dropped.values())
    assert Summary.read(out) == found


def test_equal_input_gives_equal_bytes_however_it_is_cut(source, tmp_path, monkeypatch):
    filter_rows(source, tmp_path / "one", rows_per_file=70)
    monkeypatch.setattr(scan, "SPAN", 10**6)
    monkeypatch.setattr(scan, "_GROUP", 64)
    filter_rows(source, tmp_path / "two", rows_per_file=70)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_first_row_wins_over_files(tmp_path):
    folder = tmp_path / "coyo"
    url, phash = "https://example.com/a.jpg", "00000000000000ab"
    write_table(folder / "b.parquet", make(3, 10, url={0: url}, image_phash={1: phash.upper()}))
    write_table(folder / "a.parquet", make(3, 20, url={2: url + "#x"}, image_phash={2: phash}))
    found = filter_rows(folder, tmp_path / "out")
    assert rows_in(tmp_path / "out")["id"].to_pylist() == [20, 21, 22, 12]
    assert (found.dropped["duplicate_url"], found.dropped["duplicate_phash"]) == (1, 1)


def test_a_row_dropped_earlier_hides_no_other(tmp_path):
    same = dict.fromkeys(range(3), "00000000000000ab")
    table = make(3, url={0: "https://example.com/pictures/1.jpg"}, image_phash=same, width={0: 9})
    filter_rows(write_table(tmp_path / "in.parquet", table), tmp_path / "out")
    assert rows_in(tmp_path / "out")["id"].to_pylist() == [1]


def test_blocked_rows_are_dropped_first(source, tmp_path):
    (tmp_path / "a").write_text("id:0\nhttps://example.com/pictures/2999.jpg\n")
    (tmp_path / "b").write_text(f"{pq.read_table(source)['image_phash'][1500].as_py()}\n")
    found = filter_rows(source, tmp_path / "out", blocklists=[tmp_path / "a", tmp_path / "b"])
    assert found.dropped["blocked"] >= 3


def test_nothing_left(tmp_path):
    source = write_table(tmp_path / "in.parquet", make(3, width=np.full(3, 9)))
    found = filter_rows(source, tmp_path / "out")
    assert (found.kept, found.threshold) == (0, None)
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["filter.json"]


def test_no_rows(tmp_path):
    source = write_table(tmp_path / "in.parquet", make(1).slice(1))
    assert filter_rows(source, tmp_path / "out").lines()[-1].split() == ["kept", "0", "-"]


def test_a_finished_folder_is_left_as_it_is(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    found, before = filter_rows(source, out), contents(out)
    monkeypatch.setattr("data_prep.filter.run.scan", None)
    assert filter_rows(source, out) == found
    assert contents(out) == before


OTHER = [
    ({"rules": "rules.yaml"}, r"another rules \(watermark_score, unique\); name a new folder"),
    ({"rules": "order.yaml"}, r"another rules \(order\)"),
    ({"blocklists": ["blocked"]}, "another blocklists"),
    ({"rows_per_file": 1000}, "another rows_per_file"),
]


@pytest.mark.parametrize(("options", "message"), OTHER)
def test_other_settings_are_refused_or_replace(source, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    plain = Path("plain.yaml")
    plain.write_text("aspect: {max: 2}\nwatermark_score: {max: 1}\n")
    Path("rules.yaml").write_text("aspect: {max: 2}\nwatermark_score: {max: 0.5}\nunique: [url]\n")
    Path("order.yaml").write_text("watermark_score: {max: 1}\naspect: {max: 2}\n")
    Path("blocked").write_text("id:1\n")
    if "rules" in options:
        options = {"rules": Path(options["rules"])}
    if "blocklists" in options:
        options = {"blocklists": [Path("blocked")]}
    out = Path("out")
    filter_rows(source, out, rules=plain)
    options = {"rules": plain, **options}
    with pytest.raises(UserError, match=f"out: holds rows filtered with {message}"):
        filter_rows(source, out, **options)
    filter_rows(source, out, **options, overwrite=True)
    filter_rows(source, tmp_path / "fresh", **options)
    assert contents(out) == contents(tmp_path / "fresh")


def test_other_input_is_refused(source, tmp_path):
    filter_rows(source, tmp_path / "out")
    (source / "part-00002.parquet").unlink()
    with pytest.raises(UserError, match="with another input; name a new folder"):
        filter_rows(source, tmp_path / "out")


def test_overwrite_makes_a_folder_anew(source, tmp_path):
    out = tmp_path / "out"
    filter_rows(source, out)
    before = contents(out)
    (out / "00000.parquet").unlink()
    with pytest.raises(UserError, match=r"00000\.parquet: missing; restore it, or make"):
        filter_rows(source, out)
    filter_rows(source, out, overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "00000.parquet"])
def test_other_files_are_refused(source, tmp_path, name, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=f"out: holds other files .{name}.; name a new folder"):
        filter_rows(source, out, overwrite=overwrite)
    assert (out / name).read_text() == "mine"


def test_a_file_or_the_input_is_refused_as_output(source, tmp_path):
    with pytest.raises(UserError, match="is the folder to read"):
        filter_rows(source, source, overwrite=True)
    with pytest.raises(UserError, match="is the folder to read"):
        filter_rows(source / "part-00000.parquet", source, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is not a folder"):
        filter_rows(source, tmp_path / "file")


def test_a_damaged_file_is_named_and_mended_by_another_try(source, tmp_path):
    filter_rows(source, tmp_path / "whole")
    file = source / "part-00001.parquet"
    good = file.read_bytes()
    middle = pq.read_metadata(file).row_group(2).column(1).data_page_offset
    file.write_bytes(good[:middle] + bytes(200) + good[middle + 200 :])
    with pytest.raises(UserError, match=r"part-00001\.parquet: row group 2: damaged"):
        filter_rows(source, tmp_path / "out")
    file.write_bytes(good)
    filter_rows(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_table(source, tmp_path):
    lines = filter_rows(source, tmp_path / "out").lines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["rule", "dropped", "share", "left"]
    assert len(lines) == 2 + 14
    kept = lines[-1].split()
    assert kept[0] == "kept"
    assert lines[-2].split()[-1] == kept[1]
    assert kept[2] == f"{int(kept[1]) / 3000:.2%}"


def test_an_unfinished_folder_has_no_summary(tmp_path):
    with pytest.raises(UserError, match=r"filter\.json: missing; not a finished folder"):
        Summary.read(tmp_path)


def held(rows: int, folder: Path) -> int:
    """Bytes of Python's, NumPy's and Arrow's at their peaks, while as many rows are filtered."""
    for number in range(rows // 5000):
        write_table(folder / f"{number}.parquet", make(5000, 5000 * number), row_group_size=500)
    rules = folder.with_suffix(".yaml")
    rules.write_text("clip_similarity_vitl14: {drop_lowest: 0.01}\nunique: [url, image_phash]\n")
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    tracemalloc.start()
    try:
        filter_rows(folder, folder.with_suffix(".out"), rules=rules, rows_per_file=5000)
        return tracemalloc.get_traced_memory()[1] + counted.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def test_memory_does_not_grow_with_the_input(tmp_path, monkeypatch):
    """A bit, and something for each piece, of 20 thousand rows more, all kept: a hash takes 16
    bytes a row, a key 40."""
    pieces = {(scan, "SPAN"): 5000, (dedupe, "_PART"): 5000, (dedupe, "_CHUNK"): 2000}
    pieces |= {(verdict, "_CHUNK"): 2000, (scan, "_GROUP"): 500, (write, "_GROUP"): 500}
    for (module, name), rows in pieces.items():
        monkeypatch.setattr(module, name, rows)
    held(5000, tmp_path / "first")  # What libraries keep once they were used.
    few, many = (held(rows, tmp_path / str(rows)) for rows in (10_000, 30_000))
    assert many - few < 12 * 20_000
