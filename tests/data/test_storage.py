"""Names of folders: what they stand for, what is refused, and what is shown of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stack.data.cache import ShardCache
from stack.data.storage import expand, redact
from stack.data.stream import ShardStream
from stack.util.errors import UserError

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3}


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


REDACTED = [
    ("s3://key:secret@bucket/x", "s3://bucket/x"),
    ("http://u:p@ss@host/x?a=b#c", "http://host/x"),
    ("at 'http://h/x?sig=1', or http://h/y?sig=a@b too", "at 'http://h/x', or http://h/y too"),
    ('url="http://u@h/x?q">', 'url="http://h/x">'),
    ("/disk/a?b", "/disk/a?b"),
    ("mail a@b.c", "mail a@b.c"),
]


@pytest.mark.parametrize(("text", "shown"), REDACTED)
def test_urls_are_shown_without_passwords_and_queries(text, shown):
    assert redact(text) == shown


REFUSED = [
    ("$F_DISTILL_NOWHERE/x", r"^\$F_DISTILL_NOWHERE/x: \$F_DISTILL_NOWHERE: this variable is not"),
    ("s3://${F_DISTILL_NOWHERE}/x", r"\$F_DISTILL_NOWHERE: this variable is not set"),
    ("s3://bucket/x", "^s3://bucket/x/manifest.json: Install s3fs to access S3"),
    ("s3://bucket/x-*", r"^s3://bucket/x-\*: Install s3fs to access S3"),
    ("s4://bucket/x", "^s4://bucket/x/manifest.json: Protocol not known: s4"),
    ("s3://bucket/{x", r"^s3://bucket/\{x: a brace that is not closed"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_what_cannot_be_a_folder_is_one_line(cache, monkeypatch, spec, message):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=message) as caught:
        ShardStream(spec, **OPTIONS, cache=cache)
    assert "\n" not in str(caught.value)


def test_a_url_needs_a_cache():
    with pytest.raises(UserError, match=r"^s3://bucket/x: a URL needs a cache on this machine"):
        ShardStream("s3://key:secret@bucket/x?sig", **OPTIONS)


def test_variables_may_hold_secrets_that_look_like_variables(cache, monkeypatch):
    monkeypatch.setenv("SHARDS", "https://user:pa$word@host/x")
    (folder,) = expand("$SHARDS", cache)
    assert (folder.url, str(folder)) == ("https://user:pa$word@host/x", "https://host/x")
