"""Blocked ids, URLs and phashes: how they are read, and that both ways of asking agree."""

from __future__ import annotations

import pyarrow as pa
import pytest

from data_prep.blocklist import Blocklist, canonical, canonicals
from stack.util.errors import UserError
from tests.data_prep.coyo_rows import make

URLS = [
    ("https://a.com/x", "https://a.com/x"),
    ("  https://a.com/x \n", "https://a.com/x"),
    ("https://a.com/x#part", "https://a.com/x"),
    ("https://a.com/x #part", "https://a.com/x"),
    ("HTTPS://A.Com/X?Q=A", "https://a.com/X?Q=A"),
    ("http://a.com:80/x", "http://a.com/x"),
    ("http://a.com:/x", "http://a.com/x"),
    ("https://a.com:443", "https://a.com"),
    ("https://a.com:80/x", "https://a.com:80/x"),
    ("http://a.com:8080/x", "http://a.com:8080/x"),
    ("http://Me:Pw@A.com:80/x", "http://Me:Pw@a.com/x"),
    ("http://[::1]:80/x", "http://[::1]/x"),
    ("http://a.com?X=Y:80", "http://a.com?X=Y:80"),
    ("http://a.com/b/http://C.com:80/", "http://a.com/b/http://C.com:80/"),
    ("http://a.com/b/\u00e4.jpg", "http://a.com/b/\u00e4.jpg"),
    ("http://a.com/b c", "http://a.com/b c"),
    ("http://a_b.com/x", "http://a_b.com/x"),
    ("picture.JPG", "picture.JPG"),
    ("", ""),
]


@pytest.mark.parametrize(("url", "same"), URLS)
def test_canonical(url, same):
    assert canonical(url) == same
    assert canonical(same) == same


def test_a_column_is_made_canonical_as_its_urls_are():
    column = pa.array([*(url for url, _ in URLS), None])
    assert canonicals(column).to_pylist() == [*(same for _, same in URLS), None]


def test_urls_that_are_no_utf8_count_as_replaced():
    raw = pa.array([b"http://a.com/\xff"], pa.binary())
    bad = pa.StringArray.from_buffers(1, *raw.buffers()[1:])
    assert canonicals(bad).to_pylist() == ["http://a.com/\ufffd"]
    listed = Blocklist(urls=frozenset({"http://a.com/\ufffd"}))
    assert listed.mask(pa.record_batch({"url": bad})).tolist() == [True]


LISTED = """\
# a comment
http://Example.com/pictures/3.jpg#top  # why

id:5
00000000000000FF
"""


def test_read_takes_all_kinds(tmp_path):
    (tmp_path / "one").write_text(LISTED)
    (tmp_path / "two").write_text("id:7\r\nid:5\r\n")
    blocked = Blocklist.read([tmp_path / "one", tmp_path / "two"])
    assert blocked.ids == {5, 7}
    assert blocked.urls == {"http://example.com/pictures/3.jpg"}
    assert blocked.phashes == {"00000000000000ff"}
    assert blocked.columns == ("id", "url", "image_phash")


KINDS = [
    ("ids", "12\n 13 # me\n", Blocklist(ids=frozenset({12, 13}))),
    ("urls", "HTTP://a.com\n", Blocklist(urls=frozenset({"http://a.com"}))),
    ("phash", "00000000000000FF\n", Blocklist(phashes=frozenset({"00000000000000ff"}))),
    ("ids", "\n# none\n", Blocklist()),
]


@pytest.mark.parametrize(("kind", "lines", "expected"), KINDS)
def test_a_file_of_one_kind(tmp_path, kind, lines, expected):
    (tmp_path / "list").write_text(lines)
    assert Blocklist.of(kind, tmp_path / "list") == expected


BAD = [
    (None, "id:x", "expected a URL with ://, a phash of 16 hex digits, or id:NUMBER"),
    (None, "12", "expected a URL with ://"),
    (None, "00000000000000fg", "expected a URL"),
    (None, "id:9223372036854775808", "expected a URL"),
    ("ids", "id:12", "expected a decimal id"),
    ("ids", "http://a.com", "expected a decimal id"),
    ("urls", "a.com/x", "expected a URL with ://"),
    ("phash", "12", "expected 16 hex digits"),
]


@pytest.mark.parametrize(("kind", "line", "message"), BAD)
def test_a_bad_line_is_named(tmp_path, kind, line, message):
    file = tmp_path / "list"
    file.write_text(f"# head\n{line}\n")
    with pytest.raises(UserError) as error:
        Blocklist.of(kind, file) if kind else Blocklist.read([file])
    assert str(error.value).startswith(f"{file}:2: {line}: {message}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none: no such file"):
        Blocklist.read([tmp_path / "none"])


def test_the_digest_is_of_the_content(tmp_path):
    (tmp_path / "a").write_text("id:5\nhttp://a.com\nhttp://b.com\n")
    (tmp_path / "b").write_text("http://b.com#x\nid:5\n# c\nhttp://A.com\n")
    (tmp_path / "c").write_text("http://b.com\n")
    one, two, three = (Blocklist.read([tmp_path / name]) for name in "abc")
    assert one.digest == two.digest
    assert len({one.digest, three.digest, Blocklist().digest}) == 3


def test_mask_and_blocks_agree():
    table = make(
        8,
        id={0: None},
        url={1: None, 2: "HTTPS://example.com:443/pictures/3.jpg#x", 4: "", 7: "s://a"},
        image_phash={5: None, 6: "not a hash", 7: "00000000000000ff"},
    )
    batch = table.to_batches()[0]
    phash = table["image_phash"][3].as_py()
    lists = {
        "ids": (Blocklist(ids=frozenset({0, 5})), [5]),
        "urls": (Blocklist(urls=frozenset({"https://example.com/pictures/3.jpg"})), [2, 3]),
        "short": (Blocklist(urls=frozenset({"s://a", "s://b"})), [7]),
        "phash": (Blocklist(phashes=frozenset({phash, "0" * 16})), [0, 3]),
        "none": (Blocklist(), []),
    }
    asked = [(r["id"], r["url"], r["image_phash"]) for r in batch.to_pylist()]
    for name, (blocked, rows) in lists.items():
        one_by_one = [blocked.blocks(*row) for row in asked]
        assert blocked.mask(batch).tolist() == one_by_one, name
        assert [row for row, hit in enumerate(one_by_one) if hit] == rows, name
        assert blocked.mask(batch.slice(3, 2)).tolist() == one_by_one[3:5], name
        assert bool(blocked) == bool(rows)


def test_urls_alike_at_both_ends_are_told_apart():
    url = f"https://example.com/{'x' * 200}{{}}/with/a/long/name.jpg"
    column = pa.record_batch({"url": [url.format("aa"), url.format("ab")]})
    assert Blocklist(urls=frozenset({url.format("ab")})).mask(column).tolist() == [False, True]
