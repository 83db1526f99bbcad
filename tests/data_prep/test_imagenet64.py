"""Pictures in the layout of EDM's dataset_tool, as a folder and as a zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_prep.imagenet64 import imagenet64
from stack.data.index import Manifest
from stack.data.shard import Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError

COUNT = 11


def name(number: int) -> str:
    return f"{number // 4:05d}/img{number:08d}.png"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eleven pictures of 64 pixels, four a folder, and their classes."""
    folder = tmp_path / "source"
    for number in range(COUNT):
        path = folder / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(path, compress_level=0)
    labels = [[name(number), 7 * number] for number in range(COUNT)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def zipped(folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as file:
        for part in sorted(folder.rglob("*")):
            file.write(part, part.relative_to(folder))
    return path


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for entry in Manifest.read(folder).shards:
        shard = Shard(LocalFolder(folder), entry)
        for row in range(entry.samples):
            members = shard.read(row, shard.fields)
            found[shard.key(row)] = {part: bytes(data) for part, data in members.items()}
        shard.close()
    return found


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_are_kept_with_their_classes(kind, source, tmp_path):
    given = source if kind == "folder" else zipped(source)
    manifest = imagenet64(given, tmp_path / "out", samples_per_shard=4)
    assert (manifest.samples, len(manifest.shards), manifest.resolution) == (COUNT, 3, 64)
    assert manifest.fields == dict.fromkeys(("png", "json", "cls"), COUNT)
    found = samples(tmp_path / "out")
    assert list(found) != sorted(found)
    for number in range(COUNT):
        sample = found[f"{number // 4:05d}_img{number:08d}"]
        assert sample["png"] == (source / name(number)).read_bytes()
        assert sample["cls"] == str(7 * number).encode()
        assert json.loads(sample["json"]) == {"name": name(number)}


def test_folder_and_zip_give_the_same_shards(source, tmp_path):
    one, other = (imagenet64(s, tmp_path / s.name[-3:]) for s in (source, zipped(source)))
    assert one.fingerprint == other.fingerprint
    assert imagenet64(source, tmp_path / "seed", seed=1).fingerprint != one.fingerprint


def test_a_finished_folder_is_left_as_it_is(source, tmp_path):
    first = imagenet64(source, tmp_path / "out")
    assert imagenet64(source, tmp_path / "out") == first
    Image.new("RGB", (64, 64)).save(source / name(3))
    with pytest.raises(UserError, match="another source"):
        imagenet64(source, tmp_path / "out")
    assert imagenet64(source, tmp_path / "out", overwrite=True).samples == COUNT


def test_a_damaged_picture_is_left_out_and_counted(source, tmp_path):
    (source / name(5)).write_bytes(b"no picture")
    manifest = imagenet64(source, tmp_path / "out")
    assert (manifest.samples, manifest.counts) == (COUNT - 1, {"dropped": 1})


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_left_out_and_counted(compression, source, tmp_path):
    given = zipped(source, compression)
    with zipfile.ZipFile(given) as file:
        member = file.getinfo(name(5))
    for number, place in enumerate((0, 26, 60, 90)):  # Its magic, its name's length, its bytes.
        data = bytearray(zipped(source, compression).read_bytes())
        data[member.header_offset + place] ^= 1
        given.write_bytes(data)
        manifest = imagenet64(given, tmp_path / f"out{number}")
        assert (manifest.samples, manifest.counts) == (COUNT - 1, {"dropped": 1})


def test_no_byte_of_a_zip_ends_in_a_traceback(tmp_path):
    folder = tmp_path / "é"
    folder.mkdir()
    for number in (0, 1):
        Image.new("RGB", (1, 1)).save(folder / f"é{number}.png")
    labels = {"labels": [["é0.png", 0], ["é1.png", 1]]}
    (folder / "dataset.json").write_text(json.dumps(labels))
    given = zipped(folder)
    whole, ends = given.read_bytes(), Counter()
    for place in range(0, len(whole), 7):
        given.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        try:
            manifest = imagenet64(given, tmp_path / "out", overwrite=True)
            ends["dropped" if manifest.counts else "whole"] += 1
        except UserError:
            ends["refused"] += 1
    assert min(ends["dropped"], ends["refused"]) > 20


def test_a_damaged_list_of_labels_is_refused(source, tmp_path):
    given = zipped(source)
    with zipfile.ZipFile(given) as file:
        start = file.getinfo("dataset.json").header_offset
    data = bytearray(given.read_bytes())
    data[start + 60] ^= 1
    given.write_bytes(data)
    message = r"source\.zip/dataset\.json: cannot be read \(Bad CRC-32 .*\); restore the zip"
    with pytest.raises(UserError, match=message):
        imagenet64(given, tmp_path / "out")


SIZES = {
    "one": ([], "64x64 pixels (11)\n"),
    "two": ([(1, 1)], "64x64 pixels (10), 1x1 pixels (1): training takes squares of one size\n"),
    "four": (
        [(1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (3, 3)],
        "64x64 pixels (5), 3x3 pixels (3), 2x2 pixels (2), 1 of other sizes: training takes "
        "squares of one size\n",
    ),
    "no squares": ([(64, 32)] * COUNT, "64x32 pixels (11): training takes squares of one size\n"),
}


@pytest.mark.parametrize("case", SIZES)
def test_the_sizes_of_pictures_are_told(case, source, tmp_path, capsys):
    others, told = SIZES[case]
    for number, size in enumerate(others):
        Image.new("RGB", size).save(source / name(number))
    imagenet64(source, tmp_path / "out")
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'out'}: {told}")


LABELS = {
    "none": ({"labels": None}, "labels: must be a list of"),
    "a list": ([], "labels: must be a list of"),
    "empty": ({"labels": []}, "labels: must be a list of"),
    "a word": ({"labels": [[name(0), "cat"]]}, "is not a pair"),
    "a truth": ({"labels": [[name(0), True]]}, "is not a pair"),
    "negative": ({"labels": [[name(0), -1]]}, "is not a pair"),
    "lone": ({"labels": [name(0)]}, "is not a pair"),
    "missing": ({"labels": [["00009/x.png", 1]]}, r"00009/x\.png: in dataset\.json, but not there"),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("case", LABELS)
def test_odd_labels_are_refused(case, kind, source, tmp_path):
    value, message = LABELS[case]
    (source / "dataset.json").write_text(json.dumps(value))
    given = source if kind == "folder" else zipped(source)
    with pytest.raises(UserError, match=message):
        imagenet64(given, tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_name_that_no_file_has_is_refused(kind, source, tmp_path):
    (source / "dataset.json").write_text(json.dumps({"labels": [["a\0.png", 1]]}))
    with pytest.raises(UserError, match=r"a\0\.png: in dataset\.json, but not there"):
        imagenet64(source if kind == "folder" else zipped(source), tmp_path / "out")


def test_a_name_outside_the_folder_is_refused(source, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (source / "dataset.json").write_text(json.dumps({"labels": [["../secret.png", 1]]}))
    with pytest.raises(UserError, match=r"secret\.png: lies outside the folder"):
        imagenet64(source, tmp_path / "out")


def test_other_sources_are_refused(source, tmp_path):
    (source / "dataset.json").unlink()
    (tmp_path / "text").write_text("nothing")
    for given, message in (
        (source, r"dataset\.json: missing; it gives the class"),
        (zipped(source), r"dataset\.json: missing; it gives the class"),
        (tmp_path / "text", "not a zip file"),
        (tmp_path / "nowhere", "no such folder or zip file"),
    ):
        with pytest.raises(UserError, match=message):
            imagenet64(given, tmp_path / "out")


def test_the_shards_hold_what_pictures_decode_to(source, tmp_path):
    imagenet64(source, tmp_path / "out")
    sample = samples(tmp_path / "out")["00002_img00000010"]
    with Image.open(io.BytesIO(sample["png"])) as image:
        assert image.getpixel((0, 0)) == (10, 0, 0)
