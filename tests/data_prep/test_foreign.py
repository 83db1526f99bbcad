"""`data_prep import`: somebody else's tars, read as they are."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from data_prep import foreign
from data_prep.foreign import import_shards
from data_prep.verify import verify
from stack.data.index import Manifest
from stack.data.stream import ShardStream
from stack.util.errors import UserError
from tests.pipeline import tree

TARS, SAMPLES = 3, 5


def write_tar(path: Path, keys: list[str], formats: int = tarfile.PAX_FORMAT) -> None:
    """As img2dataset does: pax headers, owners, times; metadata and caption beside the picture."""
    with tarfile.open(path, "w", format=formats) as tar:
        for key in keys:
            for field, data in (
                ("jpg", b"picture " + key.encode()),
                ("txt", f"caption {key}".encode()),
                ("json", json.dumps({"key": key, "url": "http://x/" + "y" * 200}).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size, info.mtime, info.uname = len(data), 1_700_000_000, "somebody"
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the files that img2dataset leaves beside its tars."""
    out = tmp_path / "laion"
    out.mkdir()
    for number in range(TARS):
        write_tar(out / f"{number:05d}.tar", [f"{number:05d}{n:04d}" for n in range(SAMPLES)])
        (out / f"{number:05d}_stats.json").write_text("{}")
        (out / f"{number:05d}.parquet").write_bytes(b"PAR1")
    return out


def test_tars_stay_and_are_read_by_the_stream(folder: Path) -> None:
    before = tree(folder)
    manifest = import_shards(folder)
    assert manifest == Manifest.read(folder)
    assert manifest.samples == TARS * SAMPLES
    assert manifest.fields == {"jpg": 15, "txt": 15, "json": 15}
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    new = {f"{number:05d}.index.npy" for number in range(TARS)} | {"manifest.json"}
    assert after.keys() - before.keys() == new
    assert verify(folder) == manifest
    stream = ShardStream([str(folder)], global_batch=5, lanes=1, seed=0)
    assert stream.steps_per_epoch == 3


def test_again_changes_nothing(folder: Path) -> None:
    manifest = import_shards(folder)
    before = tree(folder)
    assert import_shards(folder) == manifest
    assert tree(folder) == before


@pytest.mark.parametrize("done", range(TARS))
def test_a_killed_import_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """The same bytes in the end; what was indexed is not read again."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    import_shards(other)
    index, seen = foreign._index, []

    def cut(tar: Path) -> object:
        if len(seen) == done:
            raise KeyboardInterrupt
        seen.append(tar.name)
        return index(tar)

    with monkeypatch.context() as patch:
        patch.setattr(foreign, "_index", cut)
        with pytest.raises(KeyboardInterrupt):
            import_shards(folder)
    with (folder / "unfinished.jsonl").open("a") as journal:
        journal.write('{"entry": {"na')  # What it was writing when it died.
    again: list[str] = []
    monkeypatch.setattr(foreign, "_index", lambda tar: (again.append(tar.name), index(tar))[1])
    import_shards(folder)
    assert len(again) == TARS - done
    assert not set(again) & set(seen)
    digests = [
        {name: digest for name, (_, digest) in tree(place).items()} for place in (folder, other)
    ]
    assert digests[0] == digests[1]


def test_a_damaged_tar_is_named_or_left_out(folder: Path) -> None:
    bad = folder / "00001.tar"
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"00001\.tar: .*--skip-damaged"):
        import_shards(folder)
    manifest = import_shards(folder, skip_damaged=True)
    assert [entry.name for entry in manifest.shards] == ["00000.tar", "00002.tar"]
    assert manifest.counts == {"damaged_shards": 1}
    assert import_shards(folder) == manifest


def test_a_tar_that_came_later_is_told(folder: Path) -> None:
    import_shards(folder)
    write_tar(folder / "00009.tar", ["x"])
    with pytest.raises(UserError, match=r"00009\.tar: not in manifest\.json"):
        import_shards(folder)
