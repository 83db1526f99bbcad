"""Captions from every kind of file, and subsets that are parts of one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stack.evaluate.prompts import STYLES, Prompts, read_prompts
from stack.util.errors import UserError


def many(count: int = 100) -> Prompts:
    return Prompts(
        [f"caption {i}" for i in range(count)],
        torch.arange(count),
        ["even" if i % 2 == 0 else "odd" for i in range(count)],
    )


def test_a_text_file_has_a_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red cat\n\n  \tünder \n", encoding="utf-8")
    found = read_prompts(tmp_path / "a.txt")
    assert found.captions == ["a red cat", "ünder"]
    assert found.indices.tolist() == [0, 1]
    assert found.groups == ["", ""]


def test_parti(tmp_path: Path) -> None:
    rows = [
        "Prompt\tCategory\tChallenge\tNote",
        'a "sign"\tWorld Knowledge\tBasic\t',
        "b\tArts\t\t",
    ]
    (tmp_path / "p.tsv").write_text("\n".join(rows) + "\n")
    found = read_prompts(tmp_path / "p.tsv")
    assert found.captions == ['a "sign"', "b"]
    assert found.groups == ["World Knowledge", "Arts"]


def test_hpsv2_is_a_folder_of_styles_or_one_of_them(tmp_path: Path) -> None:
    for style in STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} 1", f"{style} 2"]))
    found = read_prompts(tmp_path)
    assert len(found) == 8
    assert found.captions[2:4] == ["photo 1", "photo 2"]
    assert found.groups[2:4] == ["photo", "photo"]
    assert read_prompts(tmp_path / "anime.json").captions == ["anime 1", "anime 2"]


def test_coco_gives_every_pictures_first_caption(tmp_path: Path) -> None:
    notes = [(7, 2, "late"), (3, 9, "nine\n "), (5, 2, "two"), (4, 9, "other")]
    value = {"annotations": [{"id": i, "image_id": p, "caption": c} for i, p, c in notes]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(value))
    assert read_prompts(tmp_path / "captions_val2014.json").captions == ["two", "nine"]


def test_subsets_are_seeded_nested_and_keep_their_places() -> None:
    whole = many()
    small, large = whole.subset(10, 0), whole.subset(40, 0)
    assert set(small.captions) < set(large.captions)
    for subset in (small, large):
        places = subset.indices.tolist()
        assert places == sorted(places)
        assert subset.captions == [f"caption {i}" for i in places]
        assert subset.groups == [whole.groups[i] for i in places]
    assert small.captions != whole.subset(10, 1).captions
    assert whole.subset(None, 0) is whole
    assert whole.subset(100, 3).captions == whole.captions


def test_the_fingerprint_is_of_all_that_is_drawn() -> None:
    whole = many()
    prints = {whole.fingerprint, whole.subset(10, 0).fingerprint, whole.subset(10, 1).fingerprint}
    assert len(prints) == 3
    assert many().fingerprint == whole.fingerprint


@pytest.mark.parametrize("count", [0, 101])
def test_a_subset_has_a_possible_size(count: int) -> None:
    with pytest.raises(UserError, match="100 prompts"):
        many().subset(count, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "no captions in it"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("a.tsv", b"Text\tCategory\na\tb\n", "no column Prompt"),
        ("a.json", b"[1, 2]", "neither a list of captions"),
        ("a.json", b'{"images": []}', "annotations"),
        ("a.json", b'{"annotations": [{"id": 1}]}', "annotations"),
        ("a.json", b"[", "not JSON"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"anime\.json: no such file"):
        read_prompts(tmp_path)
