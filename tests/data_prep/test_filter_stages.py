"""The parts that must hold for more rows than memory: quantile, duplicates, cutting to length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data_prep.filter import dedupe
from data_prep.filter.dedupe import Left, drop_below, drop_repeated
from data_prep.filter.quantile import quantile
from data_prep.filter.scan import KEYS, SPAN, Span, regroup, spans_of


def numbers(kind, count, rng):
    match kind:
        case "normal":
            return rng.normal(0.25, 0.06, count)
        case "signs":
            return rng.normal(0, 1e300, count) * rng.choice([1, 0, -0.0, 1e-300], count)
        case "ties":
            return rng.integers(-3, 3, count) / 10
    return np.full(count, -0.5)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 2, 10, 1001])
@pytest.mark.parametrize("kind", ["normal", "signs", "ties", "same"])
def test_the_quantile_is_numpys(kind, count, share):
    rng = np.random.default_rng(count)
    values = numbers(kind, count, rng)
    holes = np.insert(values, rng.integers(0, count, 5), np.nan)
    found = quantile(lambda: iter(np.array_split(holes, 3)), share)
    assert found == np.quantile(values, share, method="lower")


def test_no_numbers_have_no_quantile():
    assert quantile(lambda: iter([]), 0.3) is None
    assert quantile(lambda: iter([np.full(3, np.nan)]), 0.3) is None


@pytest.fixture
def spans(tmp_path):
    """Spans of 0, 5, 16, 203 and 1 rows, with 60 different keys in 225 rows."""
    rng, made = np.random.default_rng(0), []
    for number, count in enumerate((0, 5, 16, 203, 1)):
        keys = np.zeros(count, KEYS)
        keys["value"] = rng.normal(size=count)
        keys["url"] = rng.integers(0, 60, count)[:, None] * np.array([2**58 + 1, 1], np.uint64)
        (tmp_path / f"{number}.keys").write_bytes(keys.tobytes())
        made.append(Span(tmp_path / str(number), count))
    return made


def keys_of(spans):
    return np.concatenate([np.fromfile(span.path.with_suffix(".keys"), KEYS) for span in spans])


def left_of(left, spans):
    return np.concatenate([left.of(number) for number in range(len(spans))])


@pytest.mark.parametrize(("part", "chunk"), [(10, 7), (1000, 2**20), (3, 100)])
def test_the_first_of_equal_keys_stays(spans, tmp_path, monkeypatch, part, chunk):
    monkeypatch.setattr(dedupe, "_PART", part)
    monkeypatch.setattr(dedupe, "_CHUNK", chunk)
    keys, left = keys_of(spans), Left([span.kept for span in spans])
    assert left.count() == len(keys)
    assert drop_below(left, spans, -1.0) == np.sum(keys["value"] < -1)
    passed = np.flatnonzero(keys["value"] >= -1)
    assert np.array_equal(np.flatnonzero(left_of(left, spans)), passed)
    _, first = np.unique(keys["url"][passed, 1], return_index=True)
    assert drop_repeated(left, spans, "url", tmp_path) == len(passed) - len(first)
    assert np.array_equal(np.flatnonzero(left_of(left, spans)), np.sort(passed[first]))
    assert left.count() == len(first)
    assert sum(left.count(number) for number in range(len(spans))) == len(first)
    assert not [*tmp_path.glob("url.*")]


def test_both_halves_of_a_hash_are_compared(tmp_path):
    keys = np.zeros(4, KEYS)
    keys["url"] = [[1, 1], [1, 2], [2, 1], [1, 2]]
    (tmp_path / "0.keys").write_bytes(keys.tobytes())
    spans, left = [Span(tmp_path / "0", 4)], Left([4])
    assert drop_repeated(left, spans, "url", tmp_path) == 1
    assert left.of(0).tolist() == [True, True, True, False]


def test_regroup_cuts_without_loss():
    batches = [pa.record_batch({"n": list(range(a, b))}) for a, b in ((0, 3), (3, 3), (3, 10))]
    tables = list(regroup(iter(batches), 4))
    assert [table["n"].to_pylist() for table in tables] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(table["n"].num_chunks == 1 for table in tables)
    assert not list(regroup(iter([]), 4))


def test_spans_are_whole_row_groups():
    half = SPAN // 2
    groups = [
        (0, 5),
        (5, 5 + half),
        (5 + half, 3 * half),
        (3 * half, 7 * half),
        (7 * half, 7 * half),
    ]
    assert list(spans_of(groups)) == [(0, 3 * half), (3 * half, 7 * half), (7 * half, 7 * half)]
    assert list(spans_of([])) == []
