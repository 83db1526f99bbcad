"""`data_prep download` as a command, and in folders that are not as they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.download.ledger import LEDGER
from data_prep.download.run import download
from data_prep.shards import sole_writer
from stack.data.index import MANIFEST
from stack.util.errors import UserError
from tests.data_prep.picture_server import PictureServer, rows_file, running
from tests.data_prep.test_download import SETTINGS, SIDE


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running(PictureServer()) as server:
        yield server


Damage = Callable[[Path], object]
DAMAGE: list[tuple[Damage, str]] = [
    (lambda out: (out / "000000.tar").unlink(), "000000.tar: missing"),
    (lambda out: (out / LEDGER).write_bytes(b"x" * 5000), "not a whole ledger"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_folder_is_told_in_one_line(tmp_path, server, damage, message):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/1"])
    download(rows, tmp_path / "out", SETTINGS)
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message) as told:
        download(rows, tmp_path / "out", SETTINGS)
    assert "\n" not in str(told.value)


def test_the_command_line(tmp_path, server, run):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/{n}" for n in range(6)])
    words = ("download", rows, tmp_path / "out", "--resolution", SIDE, "--allow-private")
    status, out, _ = run(*words, "--part", "1/2")
    assert status == 0
    folder = tmp_path / "out/part-00001-of-00002"
    assert out.strip() == f"{folder}: 3 samples in 1 shards (jpg json txt)"
    assert (folder / MANIFEST).is_file()
    status, _, error = run("download", tmp_path / "no.parquet", tmp_path / "other")
    assert (status, error.count("\n")) == (2, 1)
    assert "no.parquet: no such file" in error


@pytest.mark.parametrize(
    "option",
    [
        *(["--part", part] for part in ("2/2", "x", "-1/2")),
        *(["--deadline", seconds] for seconds in ("0", "nan", "inf", "-1")),
        *(["--user-agent", agent] for agent in ("", "Łódź", "a\nb")),
        *(["--quality", "200"], ["--resolution", "1"], ["--threads", "0"], ["--max-bytes", "3T"]),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["download", "rows", "out", *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_a_folder_has_one_writer(tmp_path, server):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/1"])
    with (
        sole_writer(tmp_path / "out"),
        pytest.raises(UserError, match="out: another process is writing into this folder"),
    ):
        download(rows, tmp_path / "out", SETTINGS)
    assert download(rows, tmp_path / "out", SETTINGS).samples == 1


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and no more"])
def test_a_ledger_that_has_not_begun_is_begun_anew_and_a_garbled_one_told(
    tmp_path, server, content
):
    rows = rows_file(tmp_path / "rows.parquet", [f"{server.url}/jpg/1"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER).write_bytes(content)
    if content:
        with pytest.raises(UserError, match="not a whole ledger"):
            download(rows, tmp_path / "out", SETTINGS)
    else:
        assert download(rows, tmp_path / "out", SETTINGS).samples == 1
