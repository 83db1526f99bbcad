"""COYO's parquet files as one table: order, casts, and faults that name file and column."""

from __future__ import annotations

import pyarrow as pa
import pytest

from data_prep.coyo import COLUMNS, Rows, phash_numbers, phash_text
from stack.util.errors import UserError
from tests.data_prep.coyo_rows import make, write


@pytest.fixture
def folder(tmp_path):
    """30 rows in three files; the second has row groups of 4."""
    for number, size in enumerate((100, 4, 100)):
        file = tmp_path / f"part-{number:05d}.parquet"
        write(file, make(10, 10 * number), row_group_size=size)
    (tmp_path / "notes.txt").write_text("not read")
    return tmp_path


def read(rows, *place, columns=("id",), **options):
    found = list(rows.batches(columns, *place, **options))
    ids = [number for _, batch in found for number in batch.column("id").to_pylist()]
    assert [number for number, _ in found] == [b.column("id")[0].as_py() for _, b in found]
    return ids


def test_rows_come_in_the_order_of_the_files(folder):
    rows = Rows.open(folder, ["id", "url"])
    assert (rows.total, len(rows.files)) == (30, 3)
    assert rows.groups == ((0, 10), (10, 14), (14, 18), (18, 20), (20, 30))
    assert rows.columns == tuple(COLUMNS)
    assert read(rows) == list(range(30))
    assert Rows.open(folder / "part-00001.parquet", []).total == 10


@pytest.mark.parametrize(
    "place", [(0, 30), (3,), (9, 11), (12, 13), (13, 21), (29,), (30,), (5, 5)]
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_part_of_the_rows(folder, place, size):
    assert read(Rows.open(folder, []), *place, size=size) == list(range(*(*place, 30)[:2]))


def test_row_groups_outside_are_not_read(folder):
    file = folder / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[4:60] = bytes(56)  # Into the first row group.
    file.write_bytes(data)
    rows = Rows.open(folder, [])
    assert read(rows, 14, 30) == list(range(14, 30))
    with pytest.raises(UserError, match=r"part-00001\.parquet: row group 0: damaged"):
        read(rows)


def test_columns_are_cast(tmp_path):
    table = make(
        3,
        id=pa.array([1, 2, 3], pa.int32()),
        url=pa.array(["a", "b", "c"], pa.large_string()),
        width=pa.array([640.0, float("nan"), None]),
        image_phash=pa.array([255, -1, None], pa.int64()),
        watermark_score=pa.array([0.5, 1.5, 2.0], pa.float16()),
        aesthetic_score_laion_v2=pa.array([5, 6, None], pa.int8()),
        text=pa.nulls(3),
        more=["x", "y", "z"],
    )
    rows = Rows.open(write(tmp_path / "a.parquet", table), ["id", "url"])
    ((_, batch),) = rows.batches(rows.columns)
    assert {field.name: field.type for field in batch.schema} == COLUMNS
    got = batch.to_pydict()
    assert got["id"] == [1, 2, 3]
    assert got["width"] == [640, None, None]
    assert got["image_phash"] == ["00000000000000ff", "f" * 16, None]
    assert got["watermark_score"] == [0.5, 1.5, 2.0]
    assert got["aesthetic_score_laion_v2"] == [5.0, 6.0, None]
    assert got["text"] == [None] * 3


def test_texts_are_utf8(tmp_path):
    raw = pa.array([b"caf\xe9", None, "caf\u00e9".encode()], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    rows = Rows.open(write(tmp_path / "a.parquet", make(3, text=texts)), [])
    ((_, batch),) = rows.batches(["text"])
    assert batch.column("text").to_pylist() == ["caf\ufffd", None, "caf\u00e9"]


def test_phashes_are_lower_case_text_or_numbers():
    numbers = pa.array([0, 2**64 - 1, None, 0xAB], pa.uint64())
    assert phash_text(numbers).to_pylist() == ["0" * 16, "f" * 16, None, "00000000000000ab"]
    found, valid = phash_numbers(pa.array(["00000000000000AB", "ab", None, "f" * 16]))
    assert found.tolist() == [0xAB, 0, 0, 2**64 - 1]
    assert valid.tolist() == [True, False, False, True]


def test_a_column_that_is_missing_and_not_needed_is_absent(tmp_path):
    write(tmp_path / "a.parquet", make(2).drop_columns(["num_faces"]))
    write(tmp_path / "b.parquet", make(2, 2))
    rows = Rows.open(tmp_path, ["id"])
    assert rows.columns == tuple(name for name in COLUMNS if name != "num_faces")
    assert read(rows, columns=rows.columns) == [0, 1, 2, 3]


def test_the_fingerprint_changes_with_name_and_content(folder):
    before = Rows.open(folder, []).fingerprint
    assert Rows.open(folder, ["url"]).fingerprint == before
    file = folder / "part-00002.parquet"
    write(file, make(10, 20, width={3: 641}))
    changed = Rows.open(folder, []).fingerprint
    file.rename(folder / "part-00003.parquet")
    assert len({before, changed, Rows.open(folder, []).fingerprint}) == 3


def cut(file):
    write(file, make(10))
    file.write_bytes(file.read_bytes()[:-20])


def garbled(file):
    data = write(file, make(10)).read_bytes()
    file.write_bytes(data[:-400] + bytes(200) + data[-200:])


FAULTS = [
    (lambda file: None, "no such file or folder; name COYO's parquet files"),
    (lambda file: file.mkdir(), "no .parquet files in it"),
    (lambda file: file.write_bytes(b""), "not a whole parquet file"),
    (lambda file: file.write_bytes(b"PAR1 no PAR1"), "not a whole parquet file"),
    (cut, "not a whole parquet file"),
    (garbled, "footer: damaged"),
    (lambda file: write(file, make(3).drop_columns(["url"])), "url: no such column; it has id,"),
    (
        lambda file: write(file, make(2, width=pa.array(["1", "2"]))),
        "width: must be numbers, not string",
    ),
    (
        lambda file: write(file, make(2, watermark_score=pa.array([True, False]))),
        "watermark_score: must be numbers, not bool",
    ),
    (lambda file: write(file, make(2, url=pa.array([1, 2]))), "url: must be text, not int64"),
    (lambda file: write(file, make(2, image_phash=pa.array([0.5, 1]))), "image_phash: must be"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_faults_are_one_line_that_names_the_file(tmp_path, spoil, message):
    file = tmp_path / "a.parquet"
    spoil(file)
    with pytest.raises(UserError) as error:
        Rows.open(file, ["id", "url"])
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)
