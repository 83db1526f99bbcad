"""From COYO's parquet files to a distillation, over a web server on this machine, and the same
bytes whatever was killed on the way. KILLS=20 kills as often; ``make drill`` does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml

from data_prep.captions import clean
from data_prep.download.ledger import Ledger
from data_prep.stats import stats
from stack.cli import main
from stack.data.index import Manifest
from stack.nets.text import load_tokenizer, tokenize
from tests import forked
from tests.data_prep import coyo_rows
from tests.data_prep.coyo_steps import PARTS, SIDE
from tests.data_prep.picture_server import PictureServer, running
from tests.pipeline import World, make_teacher, recipe_fields

KILLS = int(os.environ.get("KILLS", "3"))
_PATIENCE = 300.0
ROWS = 120
KINDS = ("jpg", "png", "webp", "rotated", "moved", "busy", "missing", "noai", "broken", "corrupt")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    make_teacher(folder)
    return folder


def prepare(root: Path, server: PictureServer) -> Path:
    """Two files of metadata: some rows break a rule, some come twice."""
    for number in range(2):
        first = number * ROWS
        numbers = range(first, first + ROWS)
        table = coyo_rows.make(
            ROWS,
            first,
            url=[f"{server.url}/{KINDS[n % len(KINDS)]}/{n}" for n in numbers],
            text=[f"photo &amp;amp; number {n} of http://a.b/c things" for n in numbers],
            watermark_score={3: 0.9, 14: 0.3},
            image_phash={7: f"{first + 1:016x}", 8: f"{first + 1:016x}"},
        )
        coyo_rows.write(root / f"parquet/part-{number:05d}.parquet", table, row_group_size=50)
    return root


def start(root: Path, teacher: Path) -> forked.Fork:
    return forked.start("tests.data_prep.coyo_steps", root, teacher)


def finish(root: Path, teacher: Path) -> float:
    """All the way; returns its seconds."""
    began = time.monotonic()
    process = start(root, teacher)
    assert process.wait(_PATIENCE) == 0, process.communicate()
    return time.monotonic() - began


def digests(root: Path) -> dict[str, str]:
    """Everything that must be the same; ledgers count requests, which kills make more."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix not in (".sqlite", "") or path.name == "manifest.json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, server: PictureServer, teacher: Path) -> tuple[Path, float]:
    """The undisturbed run, and its seconds."""
    root = prepare(tmp_path_factory.mktemp("whole"), server)
    return root, finish(root, teacher)


def test_rows_become_samples_that_plain_webdataset_reads(whole, teacher):
    root, _ = whole
    manifest = Manifest.read(root / "train")
    tars = [str(root / "train" / entry.name) for entry in manifest.shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(samples) == manifest.samples > 100
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    tokenizer = load_tokenizer(teacher)
    for sample in samples:
        about = json.loads(sample["json"])
        number = about["id"]
        caption = f"photo & number {number} of things"
        assert sample["txt"].decode() == clean(about["original_caption"]) == caption
        ids = np.load(io.BytesIO(sample["tokens.npy"]))
        assert (ids == tokenize(tokenizer, [caption])[0].numpy()[0]).all()
        assert np.load(io.BytesIO(sample["latent.npy"])).shape == (4, SIDE // 2, SIDE // 2)


def test_every_row_is_accounted_for(whole, server):
    root, _ = whole
    found = stats(root / "shards")
    dropped = json.loads((root / "rows/filter.json").read_text())["dropped"]
    assert found["rows"] == 2 * ROWS == sum(dropped.values()) + sum(found["states"].values())
    assert found["states"]["saved"] == found["samples"]
    assert dropped["watermark_score"] == 4
    assert dropped["duplicate_phash"] >= 2
    for part in range(PARTS):
        with Ledger(root / f"shards/part-{part:05d}-of-{PARTS:05d}") as ledger:
            for record in ledger.records():
                kind = str(record.url).removeprefix(server.url).split("/")[1]
                refused = {"missing": "http_404", "noai": "opt_out", "corrupt": "damaged"}
                assert record.reason == refused.get(kind, "http_500" if kind == "broken" else None)


def test_a_student_is_distilled_from_them(whole, teacher, tmp_path):
    root, _ = whole
    fields = recipe_fields(World(teacher, root / "shards", root / "train"), iterations=4)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    out = tmp_path / "run"
    assert main(["distill", str(tmp_path / "recipe.yaml"), f"out={out}"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("step", 0) for line in lines) == 4
    assert all(np.isfinite(line["student_loss"]) for line in lines if "student_loss" in line)


def test_kills_at_any_moment_change_no_byte(whole, server, teacher, tmp_path):
    """Each start is given a part of the way: a quarter, the next time round a fifth, and so on."""
    expected, seconds = whole
    kills, parts = 0, 4
    while kills < KILLS:
        root = prepare(tmp_path / str(parts), server)
        for _ in range(min(parts - 1, KILLS - kills)):
            process = start(root, teacher)
            time.sleep(seconds / parts)
            process.kill()
            process.wait()
            kills += 1
        finish(root, teacher)
        assert digests(root) == digests(expected), parts
        parts += 1
