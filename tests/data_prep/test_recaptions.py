"""`data_prep captions` with captions from elsewhere."""

from __future__ import annotations

import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.shards import ShardFolder, Tally
from stack.data.index import Manifest
from stack.data.stream import ShardStream

ROWS = {
    # key: json, caption
    "a": ({"id": 7, "alt": "an <alt> text"}, "seven"),
    "b": ({"id": 2**40, "alt": 5}, "big"),
    "c": ({"id": "7"}, "text for an id"),
    "d": ({}, "no id"),
    "e": ({"id": -1, "alt": ""}, "minus one"),
}


@pytest.fixture
def shards(tmp_path):
    folder = ShardFolder(tmp_path / "shards", {})
    rows = [
        (key, {"txt": text.encode(), "json": json.dumps(about).encode()})
        for key, (about, text) in ROWS.items()
    ]
    folder.write("000000.tar", rows, Tally())
    folder.finish()
    return tmp_path / "shards"


def told(folder):
    """Caption and original caption of every sample."""
    samples = islice(ShardStream(folder, global_batch=5, lanes=1, seed=0), 5)
    found = {
        sample["key"]: (
            bytes(sample["txt"]).decode(),
            json.loads(bytes(sample["json"])).get("original_caption"),
        )
        for sample in samples
    }
    return dict(sorted(found.items()))


def test_by_id(shards, tmp_path, pipeline, run):
    """In any order of rows; samples that the file lacks keep theirs; what is new is cleaned too."""
    table = {
        "id": pa.array([2**40, 3, -1, 7], pa.int64()),
        "new": ["a  large &amp; old one", "nobody's", None, "a seven"],
    }
    pq.write_table(pa.table(table), tmp_path / "new.parquet")
    options = ["--recaptions", tmp_path / "new.parquet", "--column", "new"]
    status, _, error = run(
        "captions", shards, tmp_path / "out", "--tokenizer", pipeline(0), *options
    )
    assert status == 0, error
    assert told(tmp_path / "out") == {
        "a": ("a seven", "seven"),
        "b": ("a large & old one", "big"),
        "c": ("text for an id", None),
        "d": ("no id", None),
        "e": ("minus one", None),
    }
    counts = Manifest.read(tmp_path / "out").counts
    assert (counts["recaptioned"], counts["kept_caption"], counts["changed"]) == (2, 3, 1)


def test_by_field(shards, tmp_path, pipeline, run):
    command = ["captions", shards, tmp_path / "out", "--tokenizer", pipeline(0), "--field", "alt"]
    assert run(*command)[0] == 0
    found = told(tmp_path / "out")
    assert found["a"] == ("an <alt> text", "seven")
    assert found["b"] == ("big", None)
    assert found["e"] == ("", "minus one")


def test_another_source_is_another_folder(shards, tmp_path, pipeline, run):
    command = ["captions", shards, tmp_path / "out", "--tokenizer", pipeline(0)]
    assert run(*command)[0] == 0
    status, _, error = run(*command, "--field", "alt")
    assert status == 2
    assert "shards made with another field" in error


BAD = {
    "no such file": (None, "new.parquet: no such file"),
    "no id": ({"caption": ["x"]}, "new.parquet: id: no such column"),
    "no caption": ({"id": [1]}, "new.parquet: caption: no such column"),
    "ids are text": ({"id": ["1"], "caption": ["x"]}, "new.parquet: id: must be whole numbers"),
    "captions are numbers": ({"id": [1], "caption": [2]}, "new.parquet: caption: must be strings"),
    "an id is missing": ({"id": [1, None], "caption": ["x", "y"]}, "new.parquet: id: 1 rows have"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(shards, tmp_path, pipeline, run, what):
    columns, message = BAD[what]
    if columns:
        pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    options = ["--tokenizer", pipeline(0), "--recaptions", tmp_path / "new.parquet"]
    status, _, error = run("captions", shards, tmp_path / "out", *options)
    assert status == 2
    assert error.splitlines()[-1].startswith(f"error: {tmp_path}/{message}")
    assert not (tmp_path / "out").exists()
