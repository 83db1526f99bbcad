"""The page of `data_prep stats`: whole in itself, harmless, and the same for the same input."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.shards import ShardFolder, Tally
from data_prep.stats import stats
from data_prep.stats.charts import histogram_svg
from data_prep.stats.samples import histogram
from stack.data.decode import encode_npy

MARKUP = '</p><script>alert("x")</script><img src="https://evil.example/x.png"> & <b>'
_VOID = {"meta", "img"}


class Reader(HTMLParser):
    """What is in a page. Tags that do not match fail."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 samples: pictures of several shapes, one that is none, and captions with markup."""
    out = tmp_path / "<b>out"
    rng = np.random.default_rng(0)
    samples = []
    for n in range(24):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (40 + 20 * n, 400, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        about = {"original_caption": f"{n} {MARKUP} \ud83d", "original_width": 640}
        fields = {
            "png": b"garbage" if n == 5 else buffer.getvalue(),
            "txt": f"caption {n} {MARKUP}".encode() * (1 + n % 3),
            "json": json.dumps({**about, "original_height": 480 + n}).encode(),
        }
        samples.append((f"{n:06d}", fields))
    made = ShardFolder(out, {"verb": "test"})
    made.write("000000.tar", samples[:12], Tally())
    made.write("000001.tar", samples[12:], Tally())
    made.finish(counts={MARKUP: 3})
    return out


def test_the_page_is_whole_in_itself_and_captions_are_only_text(folder, tmp_path):
    stats(folder, html=tmp_path / "page.html", sheet=24)
    page = read(tmp_path / "page.html")
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "a", "iframe"}
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(links) == 23
    assert all(value.startswith("data:image/jpeg;base64,") for value in links)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.text)
    assert f"caption 7 {MARKUP}" in text
    assert f"was: 7 {MARKUP} ?" in text
    assert "The picture cannot be decoded." in text
    assert MARKUP not in (tmp_path / "page.html").read_text()


def test_pictures_are_small_jpegs_of_the_same_shape(folder, tmp_path):
    stats(folder, html=tmp_path / "page.html", sheet=24)
    found = read(tmp_path / "page.html").attributes
    sources = [value for _, name, value in found if name == "src"]
    sizes = []
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert image.format == "JPEG"
            sizes.append(image.size)
    assert sizes[0] == (192, 19)
    assert sizes[-1] == (154, 192)
    assert max(max(size) for size in sizes) == 192


def test_equal_input_gives_equal_bytes_and_the_seed_chooses_the_samples(folder, tmp_path):
    pages = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        stats(folder, html=tmp_path / name, sheet=4, seed=seed)
        pages[name] = (tmp_path / name).read_bytes()
    assert pages["a"] == pages["b"] != pages["c"]
    assert stats(folder) == stats(folder, html=tmp_path / "a", sheet=0)


def test_every_share_of_the_shards_has_its_sample(folder, tmp_path):
    stats(folder, html=tmp_path / "page.html", sheet=6, seed=3)
    keys = [
        int(text) for text in read(tmp_path / "page.html").text if text.isdigit() and len(text) == 6
    ]
    assert [key // 4 for key in keys] == list(range(6))


def test_samples_without_pictures_have_captions_only(tmp_path):
    made = ShardFolder(tmp_path / "out", {"verb": "test"})
    latent = encode_npy(np.zeros((4, 2, 2), np.float16))
    made.write("000000.tar", [("a", {"txt": b"a red fish", "latent.npy": latent})], Tally())
    made.finish()
    stats(tmp_path / "out", html=tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "img" not in {tag for tag, _, _ in page.attributes}
    assert "a red fish" in page.text


def test_a_chart_has_a_column_for_each_bucket_between_the_first_and_the_last(tmp_path):
    found = histogram([5, 5, 15, 45, 99], (0, 10, 20, 30, 40, 50))
    svg = histogram_svg(found, "words")
    assert svg.count("<rect") == 6
    assert "0 to below 10 words: 2 samples" in svg
    assert "50 or more words: 1 samples" in svg
    assert "40.0 %" in svg
    assert histogram_svg(histogram([25, 25], (0, 10, 20, 30)), "words").count("<rect") == 1
