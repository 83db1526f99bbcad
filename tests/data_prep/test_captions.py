"""`data_prep captions`: what is cleaned, what is kept, what is counted."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from data_prep.captions import clean
from data_prep.shards import ShardFolder, Tally
from stack.data.batch import BatchLoader
from stack.data.index import Manifest
from stack.data.stream import ShardStream
from stack.nets.text import load_tokenizer, tokenize, tokenizer_hash

CLEAN = [
    ("a red seven", "a red seven"),
    ("  a\tred \n\n seven ", "a red seven"),
    ("salt &amp; pepper", "salt & pepper"),
    ("salt &amp;amp; pepper", "salt & pepper"),
    ("&lt;b&gt;", "<b>"),
    ("cafe\u0301", "caf\u00e9"),
    ("zero\u200bwidth\ufeff soft\u00adhyphen", "zerowidth softhyphen"),
    ("nul\x00bell\x07", "nul bell"),
    (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    ),
    ("see https://example.org/a?b=c for more", "see for more"),
    ("WWW.example.org photo", "photo"),
    ("http://only.example.org", ""),
    ("", ""),
]


@pytest.mark.parametrize(("before", "after"), CLEAN)
def test_clean(before, after):
    assert clean(before) == after
    assert clean(after) == after or "&" in before


@pytest.fixture
def shards(tmp_path):
    """One sample a caption of the table, and one that is too long."""
    folder = ShardFolder(tmp_path / "shards", {})
    texts = [before for before, _ in CLEAN] + ["word " * 40]
    rows = [
        (f"{n:03d}", {"txt": text.encode(), "json": json.dumps({"n": n}).encode()})
        for n, text in enumerate(texts)
    ]
    folder.write("000000.tar", rows, Tally())
    folder.finish()
    return tmp_path / "shards"


def test_captions_are_cleaned_tokenised_and_counted(shards, tmp_path, pipeline, run):
    out = tmp_path / "out"
    status, said, _ = run("captions", shards, out, "--tokenizer", pipeline(0))
    changed = 1 + sum(before != after for before, after in CLEAN)
    assert status == 0
    assert f"{changed} changed; 1 truncated; 2 empty" in said
    manifest = Manifest.read(out)
    assert manifest.counts == {"changed": changed, "truncated": 1, "empty": 2}
    assert manifest.tokenizer.hash == tokenizer_hash(pipeline(0))
    loader = BatchLoader(
        ShardStream(out, global_batch=14, lanes=1, seed=0), ("text", "tokens", "json", "key")
    )
    batch = next(iter(loader))
    tokenizer = load_tokenizer(pipeline(0))
    for text, ids, about, key in zip(
        batch["text"], batch["tokens"], batch["json"], batch["key"], strict=True
    ):
        number = about["n"]
        assert key == f"{number:03d}"
        assert ids.tolist() == tokenize(tokenizer, [text])[0][0].tolist()
        if number < len(CLEAN):
            before, after = CLEAN[number]
            assert text == after
            assert about.get("original_caption", after) == before


def test_the_input_is_never_written_to(shards, pipeline, run):
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    for options in ([], ["--overwrite"]):
        status, _, error = run("captions", shards, shards, "--tokenizer", pipeline(0), *options)
        assert status == 2
        assert "is the folder to read; name a new folder" in error
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


def test_cleaning_again_keeps_the_first_original(shards, tmp_path, pipeline, run):
    for source, out in ((shards, tmp_path / "one"), (tmp_path / "one", tmp_path / "two")):
        assert run("captions", source, out, "--tokenizer", pipeline(0))[0] == 0
    samples = islice(ShardStream(tmp_path / "two", global_batch=14, lanes=1, seed=0), 14)
    about = {sample["key"]: json.loads(sample["json"]) for sample in samples}
    assert about["001"]["original_caption"] == CLEAN[1][0]
    assert about["003"]["original_caption"] == CLEAN[3][0]
