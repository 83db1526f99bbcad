"""`data_prep captions`: clean captions and the token ids of the teacher's tokenizer."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.recaptions import Source, from_json, from_parquet
from data_prep.shards import CODE, Sample, Tally
from data_prep.transform import Convert, output_for, transform
from stack.data.decode import encode_npy
from stack.data.index import Manifest, TokenizerInfo
from stack.nets.text import load_tokenizer, tokenize, tokenizer_hash
from stack.util.errors import UserError
from stack.util.files import sha256_file

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_JOINERS = "\u200c\u200d"
"""Format characters that change what is read (Persian, Indic scripts, emoji)."""

_BATCH = 1000


def captions(
    shards: Path,
    out: Path,
    *,
    tokenizer: Path,
    field: str | None = None,
    recaptions: Path | None = None,
    column: str = "caption",
    overwrite: bool = False,
) -> Manifest:
    """Write SHARDS anew into OUT with clean captions and `tokens.npy` (uint16, 77).

    Args:
        field: of the samples' json, to take captions from. recaptions, column: a parquet file
            keyed by `id`, to take them from. Samples that it lacks keep theirs.
    """
    before = Manifest.read(shards)
    if not before.holds("txt"):
        raise UserError(f"{shards}: txt: not every sample has a caption")
    digest = tokenizer_hash(tokenizer)
    origin: dict[str, Any] = {
        "verb": "captions",
        "source": before.fingerprint,
        "tokenizer": digest,
    }
    other: Source | None = None
    if field:
        other, origin["field"] = from_json(field), field
    if recaptions:
        other = from_parquet(recaptions, column)
        origin |= {"recaptions": sha256_file(recaptions), "column": column}
    convert = _converter(tokenizer, other)  # Before anything there is overwritten.
    folder = output_for(shards, out, origin, overwrite=overwrite)
    known = {"tokenizer": TokenizerInfo(hash=digest), "code": {"captions": CODE}}
    return transform("captions", shards, folder, convert, **known)


def clean(text: str) -> str:
    """A caption from the web as text: entities (also those escaped twice) resolved, Unicode in
    NFC, without URLs, control and format characters, white space collapsed."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    text = "".join(_visible(character) for character in text)
    return " ".join(_URL.sub(" ", text).split())


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category == "Cf" and character not in _JOINERS else character


def _converter(folder: Path, other: Source | None) -> Convert:
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > 2**16:
        raise UserError(f"{folder}: tokenizer: {len(tokenizer)} tokens do not fit into uint16")

    def convert(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        tally.counts.update(changed=0, truncated=0, empty=0)
        chosen = (_recaptioned(sample, other, tally) for sample in samples) if other else samples
        while batch := [_cleaned(sample, tally) for sample in islice(chosen, _BATCH)]:
            texts = [fields["txt"].decode() for _, fields in batch]
            ids, truncated = tokenize(tokenizer, texts)
            tally.counts.update(truncated=truncated, empty=texts.count(""))
            for (key, fields), row in zip(batch, ids.numpy().astype(np.uint16), strict=True):
                yield key, {**fields, "tokens.npy": encode_npy(row)}

    return convert


def _recaptioned(sample: Sample, other: Source, tally: Tally) -> Sample:
    text = other(sample)
    tally.counts["kept_caption" if text is None else "recaptioned"] += 1
    return sample if text is None else _with_caption(sample, text)


def _cleaned(sample: Sample, tally: Tally) -> Sample:
    before = sample[1]["txt"].decode(errors="replace")
    after = clean(before)
    if after == before:
        return sample
    tally.counts["changed"] += 1
    return _with_caption(sample, after)


def _with_caption(sample: Sample, text: str) -> Sample:
    """The sample with another caption; the first one it had stays in its json."""
    key, fields = sample
    about = json.loads(fields.get("json", b"{}"))
    about.setdefault("original_caption", fields["txt"].decode(errors="replace"))
    described = json.dumps(about, ensure_ascii=False).encode()
    return key, {**fields, "txt": text.encode(), "json": described}
