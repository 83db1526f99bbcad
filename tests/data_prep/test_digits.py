"""The digits dataset: real scans, all colours, captions whose shares do not depend on the digit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.digits import COLOURS, DIGITS, caption
from stack.data.index import Manifest
from stack.data.stream import ShardStream


@pytest.fixture(scope="module")
def rows(digits):
    return pq.read_table(digits / "digits.parquet").to_pylist()


def test_every_scan_comes_in_every_colour(rows):
    assert len(rows) == 1797 * 6
    assert set(rows[0]) == {"id", "image", "text", "digit", "colour", "scan"}
    assert Counter((row["scan"], row["colour"]) for row in rows) == Counter(
        (scan, colour) for scan in range(1797) for colour in COLOURS
    )


def test_labels_and_ink_are_scikit_learns(rows):
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    assert [DIGITS.index(row["digit"]) for row in rows] == np.repeat(labels, 6).tolist()
    for row in rows[:: 6 * 40 + 1]:
        with Image.open(io.BytesIO(row["image"])) as image:
            assert (image.mode, image.size) == ("RGB", (16, 16))
            pixels = np.asarray(image, float)
        small = np.asarray(Image.fromarray(pixels.max(axis=2)).resize((8, 8), Image.Resampling.BOX))
        ink = scans[row["scan"]].reshape(8, 8)
        assert np.corrcoef(small.ravel(), ink.ravel())[0, 1] > 0.95
        shade = pixels.reshape(-1, 3).max(axis=0)
        nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - shade).sum())
        assert nearest == row["colour"]


def test_shares_of_captions(rows):
    forms = Counter()
    for row in rows:
        words = row["text"].split()
        states = (row["colour"] in words, row["digit"] in words)
        assert not set(words) & ({*DIGITS, *COLOURS} - {row["colour"], row["digit"]})
        forms[states] += 1
        forms[states, row["digit"]] += 1
    for states, share in [((True, True), 0.57), ((True, False), 0.38), ((False, True), 0.05)]:
        assert forms[states] / len(rows) == pytest.approx(share, abs=0.02)
        for digit in DIGITS:
            of_digit = sum(row["digit"] == digit for row in rows)
            assert forms[states, digit] / of_digit == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize(
    ("digit", "chance", "text"),
    [
        ("seven", 0.0, "a red seven"),
        ("seven", 0.6, "a red digit"),
        ("seven", 0.99, "a seven"),
        ("eight", 0.1, "a red eight"),
        ("eight", 0.99, "an eight"),
    ],
)
def test_captions(digit, chance, text):
    assert caption(digit, "red", chance) == text


def test_shards_hold_the_rows_and_what_the_caption_states(digits, rows):
    by_id = {row["id"]: row for row in rows}
    stream = ShardStream(digits / "shards", global_batch=6, lanes=1, seed=0)
    epoch = list(islice(stream, len(rows)))
    assert {sample["key"] for sample in epoch} == set(by_id)
    for sample in epoch:
        row, about = by_id[sample["key"]], json.loads(sample["json"])
        assert sample["png"] == row["image"]
        assert sample["txt"].decode() == row["text"]
        words = row["text"].split()
        assert about.pop("states") == [n for n in ("colour", "digit") if row[n] in words]
        assert about == {name: row[name] for name in ("id", "digit", "colour", "scan")}


def test_shards_are_mixed(digits):
    manifest = Manifest.read(digits / "shards")
    assert manifest.resolution == 16
    assert manifest.fields == dict.fromkeys(("png", "txt", "json"), 10782)
    keys = np.load(digits / "shards/000000.index.npy")["key"].astype(int)
    assert keys.min() < 200
    assert keys.max() > 10582
    assert abs(np.corrcoef(keys, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.usefixtures("few_scans")
def test_bytes_are_a_function_of_the_seed(tmp_path, run):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for out, seed in ((one, 0), (two, 0), (other, 1)):
        assert run("digits", out, "--seed", seed)[0] == 0
    files = sorted(path.relative_to(one) for path in one.rglob("*.*"))
    assert len(files) == 2 * 2 + 2
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
        assert (one / file).read_bytes() != (other / file).read_bytes(), file
    before, after = (pq.read_table(out / "digits.parquet").to_pydict() for out in (one, other))
    assert before["image"] == after["image"]
    assert before["text"] != after["text"]


@pytest.mark.usefixtures("few_scans")
def test_parquet_of_other_pictures_is_not_written_over(tmp_path, run):
    assert run("digits", tmp_path)[0] == 0
    before = (tmp_path / "digits.parquet").read_bytes()
    status, _, error = run("digits", tmp_path, "--resolution", 8)
    assert status == 2
    assert "digits.parquet: holds something else already" in error
    assert (tmp_path / "digits.parquet").read_bytes() == before
    assert run("digits", tmp_path, "--resolution", 8, "--overwrite")[0] == 0
    assert Manifest.read(tmp_path / "shards").resolution == 8


@pytest.mark.parametrize(
    ("verb", "absent"), [("digits", ("torch",)), ("captions", ("diffusers", "torch._dynamo"))]
)
def test_a_verb_loads_what_it_needs(verb: str, absent: tuple[str, ...]) -> None:
    """These take seconds of every start."""
    program = f"import sys, data_prep.{verb}; print(*{{*{absent!r}}} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "\n", "")
