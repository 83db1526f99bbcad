"""Names of folders: what they stand for, what is refused, and what is shown of them."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from stack.config.sections import Data
from stack.data.cache import ShardCache
from stack.data.storage import expand, redact, shown
from stack.data.stream import ShardStream
from stack.train.build import cache_of
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
    ("s3://KEY:SE/CRET@bucket/x", "s3://bucket/x"),
    ("s3://KEY:SE'C\"R)ET@bucket/x", "s3://bucket/x"),
    ("https://u:p?ss@h", "https://***"),
    ("https://u:cut", "https://***"),
    ("http://h/x?sig=a)SECRET", "http://h/x"),
    ("http://h:80/x: refused", "http://h:80/x: refused"),
    ("s3://bucket/v@2/x", "s3://bucket/v@2/x"),
    ("s3://bucket/part-?", "s3://bucket/part-?"),
    ("abfs://box@me.dfs.core.windows.net/x", "abfs://box@me.dfs.core.windows.net/x"),
    ("abfs://box:SECRET@me.dfs.core.windows.net/x", "abfs://me.dfs.core.windows.net/x"),
    ("hf://datasets/me/set@main/x", "hf://datasets/me/set@main/x"),
]


@pytest.mark.parametrize(("text", "shown"), REDACTED)
def test_urls_are_shown_without_passwords_and_queries(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("part", ["a b'\"c)d", "pa%2Fss", "SEC RET&x="])
@pytest.mark.parametrize("url", ["s3://key:{}@bucket/x", "https://host/x?sig={}"])
def test_a_known_url_has_no_secret_in_any_spelling(url, part):
    whole = url.format(part)
    text = f"{whole}: see {url.format(quote(part))}, {url.format(unquote(part))}/y"
    told = redact(text, whole)
    for secret in (part, quote(part), unquote(part)):
        assert secret not in told
    assert told.startswith(f"{shown(whole)}: see ")


REFUSED = [
    ("s3://K:SE/CRET@bucket/x", "^s3://bucket/x: its password holds /, .* write %2F, %3F or %23"),
    ("https://u:p?ss@host/x", r"^https://\*\*\*: its password holds"),
    ("s4://u:a b@bucket/x", "^s4://bucket/x/manifest.json: Protocol not known: s4$"),
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


FOLDERS = [
    # data.folders, data.cache, the cache's folder or the message
    ("$SHARDS", "$PLACE/cache", "{place}/cache"),
    ("$SHARDS", "{place}/other", "{place}/other"),
    ("$SHARDS", "$F_DISTILL_NOWHERE/x", r"^\$F_DISTILL_NOWHERE/x: \$F_DISTILL_NOWHERE: this var"),
    ("$F_DISTILL_NOWHERE", "", r"^\$F_DISTILL_NOWHERE: \$F_DISTILL_NOWHERE: this variable is not"),
]


@pytest.mark.parametrize(("folder", "cache", "expected"), FOLDERS)
def test_variables_of_the_cache_are_those_of_folders(
    tmp_path, monkeypatch, folder, cache, expected
):
    monkeypatch.setenv("SHARDS", "https://host/x")
    monkeypatch.setenv("PLACE", str(tmp_path))
    data = Data(folders=[folder], cache=cache.format(place=tmp_path), global_batch=1)
    if expected.startswith("^"):
        with pytest.raises(UserError, match=expected):
            cache_of(data)
    else:
        made = cache_of(data)
        assert made is not None
        assert str(made.folder) == expected.format(place=tmp_path)
