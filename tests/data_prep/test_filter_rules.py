"""The rules: every one drops what it should, and a mistake in their file is told in one line."""

from __future__ import annotations

import logging

import pyarrow as pa
import pytest

from data_prep.filter.rules import DEFAULTS, Rules, values_of
from data_prep.filter.run import filter_rows
from stack.util.errors import UserError
from tests.data_prep.coyo_rows import make, write

BLANK = "\u3000 \n"
DROPS = [
    # column, value of one row, rule that drops it (None: it is kept)
    ("url", None, "no_url"),
    ("url", "", "no_url"),
    ("text", None, "no_text"),
    ("text", BLANK, "no_text"),
    ("image_phash", None, "no_phash"),
    ("width", None, "min_side"),
    ("width", 511, "min_side"),
    ("height", 511, "min_side"),
    ("height", 0, "min_side"),
    ("height", 640, None),
    ("width", 1024, None),
    ("width", 1025, "aspect"),
    ("height", 1281, "aspect"),
    ("word_count", None, "word_count"),
    ("word_count", 2, "word_count"),
    ("word_count", 3, None),
    ("word_count", 75, None),
    ("word_count", 76, "word_count"),
    ("nsfw_score_opennsfw2", 0.2, "nsfw_score_opennsfw2"),
    ("nsfw_score_opennsfw2", 0.19, None),
    ("nsfw_score_opennsfw2", None, "nsfw_score_opennsfw2"),
    ("nsfw_score_gantman", 0.5, "nsfw_score_gantman"),
    ("nsfw_score_gantman", None, "nsfw_score_gantman"),
    ("watermark_score", 0.2, "watermark_score"),
    ("watermark_score", 0.1999, None),
    ("watermark_score", None, "watermark_score"),
    ("watermark_score", float("nan"), "watermark_score"),
    ("aesthetic_score_laion_v2", 4.999, "aesthetic_score_laion_v2"),
    ("aesthetic_score_laion_v2", 5.0, None),
    ("aesthetic_score_laion_v2", None, "aesthetic_score_laion_v2"),
    ("clip_similarity_vitl14", 0.1, "clip_similarity_vitl14"),
    ("clip_similarity_vitl14", None, "clip_similarity_vitl14"),
    ("clip_similarity_vitl14", float("nan"), "clip_similarity_vitl14"),
    ("url", "HTTPS://example.com:443/pictures/0.jpg#x", "duplicate_url"),
    ("image_phash", "0" * 16, "duplicate_phash"),
    ("clip_similarity_vitb32", None, None),
    ("num_faces", None, None),
]


@pytest.mark.parametrize(("column", "value", "rule"), DROPS)
def test_a_default_rule(tmp_path, column, value, rule):
    write(tmp_path / "in.parquet", make(6, **{column: {4: value}}))
    found = filter_rows(tmp_path / "in.parquet", tmp_path / "out")
    assert {name: count for name, count in found.dropped.items() if count} == (
        {rule: 1} if rule else {}
    )
    assert (found.rows, found.kept) == (6, 5 if rule else 6)


def test_a_row_counts_under_the_first_rule_that_drops_it(tmp_path):
    table = make(4, url={1: None}, text={1: None, 2: ""}, width={1: 3, 2: 3, 3: 3})
    (tmp_path / "blocked").write_text("id:0\n")
    found = filter_rows(
        write(tmp_path / "in.parquet", table),
        tmp_path / "out",
        blocklists=[tmp_path / "blocked"],
    )
    dropped = {"blocked": 1, "no_url": 1, "no_text": 1, "min_side": 1}
    assert {name: count for name, count in found.dropped.items() if count} == dropped
    assert found.kept == 0


def test_the_order_of_the_file_is_the_order_of_the_rules(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("aspect: {max: 2}\nnum_faces: {drop_lowest: 0.1}\nheight: {min: 1, max: 9}\n")
    rules = Rules.read(file)
    assert rules.names == ("blocked", "no_url", "no_text", "aspect", "height", "num_faces")
    assert rules.columns == ("url", "text", "width", "height", "num_faces")
    assert rules.ranked == ("num_faces", 0.1)
    assert [*rules.resolved()] == ["aspect", "num_faces", "height", "unique"]


def test_the_defaults_are_those_of_the_documentation():
    assert Rules.read() == Rules.read(DEFAULTS)
    assert Rules.read().names == (
        *("blocked", "no_url", "no_text", "no_phash", "min_side", "aspect", "word_count"),
        *("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score"),
        *("aesthetic_score_laion_v2", "clip_similarity_vitl14"),
        *("duplicate_url", "duplicate_phash"),
    )


def test_values_that_are_made():
    sides = {"width": [10, 30, 0, None], "height": [20, 10, 0, 5]}
    batch = pa.record_batch({name: pa.array(side, pa.int64()) for name, side in sides.items()})
    assert values_of(batch, "min_side").tolist()[:3] == [10, 10, 0]
    assert values_of(batch, "aspect").tolist()[:2] == [2, 3]
    for name in ("min_side", "aspect"):
        assert str(values_of(batch, name)[3]) == "nan"


MISTAKES = [
    ("[1, 2]", "not a mapping of rules"),
    ("a: {", "not readable as YAML"),
    ("watermark: {max: 1}", "watermark: unknown rule; did you mean watermark_score?"),
    ("id: {max: 1}", "id: unknown rule; one of width, height"),
    ("url: {max: 1}", "url: unknown rule"),
    ("aspect: {most: 1}", "aspect.most: unknown; give min, max, below, drop_lowest"),
    ("aspect: 2", "aspect: 2: must be limits, such as {min: 5}"),
    ("aspect: {}", "aspect: give min, max, below or drop_lowest"),
    ("aspect: {max: '2'}", "aspect.max: '2': should be a valid number"),
    ("aspect: {max: true}", "aspect.max: True: should be a valid number"),
    ("aspect: {max: .inf}", "aspect.max: inf: should be a finite number"),
    ("aspect: {min: 2, max: 1}", "aspect: min 2 is above 1; no row could pass"),
    ("aspect: {min: 2, below: 1}", "aspect: min 2 is above 1; no row could pass"),
    ("aspect: {drop_lowest: 1}", "aspect.drop_lowest: 1: should be less than 1"),
    ("aspect: {drop_lowest: 0}", "aspect.drop_lowest: 0: should be greater than 0"),
    ("aspect: {drop_lowest: 0.1, max: 2}", "aspect: drop_lowest stands alone"),
    ("aspect: {drop_lowest: 0.1}\nwidth: {drop_lowest: 0.1}", "drop_lowest: given for two values"),
    ("unique: [id]", "unique.0: 'id': should be 'url' or 'image_phash'"),
    ("unique: url", "unique: 'url': should be a valid tuple"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_named(tmp_path, text, message):
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Rules.read(file)
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


def test_missing_rules_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none: no such file; .*rules\.yaml shows"):
        Rules.read(tmp_path / "none")


@pytest.mark.parametrize(("low", "warned"), [("5", 0), ("5.9", 0), ("6", 1), ("6.25", 1)])
def test_a_high_aesthetic_bound_is_warned_of_once(tmp_path, caplog, low, warned):
    (tmp_path / "rules.yaml").write_text(f"aesthetic_score_laion_v2: {{min: {low}}}\n")
    write(tmp_path / "in.parquet", make(3))
    with caplog.at_level(logging.WARNING):
        filter_rows(tmp_path / "in.parquet", tmp_path / "out", rules=tmp_path / "rules.yaml")
    assert len(caplog.messages) == warned
    assert all("about 1 million of COYO's" in message for message in caplog.messages)


def test_a_column_is_needed_only_by_its_rule(tmp_path):
    source = write(tmp_path / "in.parquet", make(3).drop_columns(["watermark_score", "num_faces"]))
    with pytest.raises(UserError, match=r"in\.parquet: watermark_score: no such column"):
        filter_rows(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "rules.yaml").write_text("aspect: {max: 2}\n")
    assert filter_rows(source, tmp_path / "out", rules=tmp_path / "rules.yaml").kept == 3
