"""Stage 2: the rules that compare rows with each other, over the keys that stage 1 left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.filter.dedupe import Left, drop_below, drop_repeated
from data_prep.filter.quantile import quantile
from data_prep.filter.rules import DUPLICATE, Rules
from data_prep.filter.scan import Span
from stack.util.files import read_json, write_atomic, write_json

_CHUNK = 2**20


def verdict(
    spans: Sequence[Span], rules: Rules, work: Path
) -> tuple[Left, Counter[str], float | None]:
    """Which rows are left in the end, rows dropped by rule, and the lowest ranked value that
    stays. Done once; a run that was killed later reads it from `work`."""
    left = Left([span.kept for span in spans])
    bits, done = work / "verdict.bits", work / "verdict.json"
    if not done.exists():
        dropped, threshold = _judge(left, spans, rules, work)
        write_atomic(bits, left.bits.tobytes())
        write_json(done, {"dropped": dropped, "threshold": threshold})
    stored = read_json(done)
    left.bits = np.fromfile(bits, np.uint8)
    return left, Counter(stored["dropped"]), stored["threshold"]


def _judge(
    left: Left, spans: Sequence[Span], rules: Rules, work: Path
) -> tuple[Counter[str], float | None]:
    dropped, threshold = Counter[str](), None
    if rules.ranked:
        name, share = rules.ranked

        def values() -> Iterator[np.ndarray]:
            return (keys["value"] for span in spans for keys in span.keys(_CHUNK))

        threshold = quantile(values, share)
        dropped[name] = drop_below(left, spans, threshold)
    for column in rules.keys:
        dropped[DUPLICATE[column]] = drop_repeated(left, spans, column, work)
    return dropped, threshold
