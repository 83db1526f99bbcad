"""BatchLoader: tensors in the stream's order for any number of workers, and an exact place."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from zlib_ng.zlib_ng import crc32

from stack.data import lanes
from stack.data.batch import BatchLoader
from stack.data.decode import FIELDS, decode_npy, encode_npy
from stack.data.index import TokenizerInfo, VaeInfo
from stack.data.shard import SampleError, Shard
from stack.data.stream import ShardStream
from stack.util.errors import UserError
from tests.data.conftest import sample
from tests.data.damage import flip, place_of

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3, "window": 6}


def loader(folder: Path | list[Path], fields: tuple[str, ...] = ("cls", "key"), **options):
    rank = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    return BatchLoader(ShardStream(folder, **OPTIONS, **rank), fields, **options)


def keys(batches: BatchLoader, count: int) -> list[list[str]]:
    return [batch["key"] for batch in islice(batches, count)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[str]]:
    """Keys of the global batches of three epochs."""
    stream = iter(ShardStream(folder, **OPTIONS))
    return [[sample["key"] for sample in islice(stream, 16)] for _ in range(12)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_global_batches_depend_on_neither_world_nor_workers(folder, expected, world, workers):
    parts = [
        keys(loader(folder, workers=workers, rank=rank, world_size=world), 8)
        for rank in range(world)
    ]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == expected[:8]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_place_counts_delivered_batches_not_prefetched_ones(folder, expected, workers):
    before = loader(folder, workers=workers)
    source = iter(before)
    assert [next(source)["key"] for _ in range(5)] == expected[:5]
    state = json.loads(json.dumps(before.state_dict()))
    assert (state["epoch"], state["step"]) == (1, 1)
    after = loader(folder)
    after.load_state_dict(state)
    assert keys(after, 4) == expected[5:9]
    before.load_state_dict({**state, "epoch": 0})
    assert keys(before, 2) == expected[1:3]


WHAT_ARRIVES = [
    ("image", (torch.uint8, (16, 3, 8, 8)), lambda value, n: value[:, 3, 2].tolist() == [n, 0, 7]),
    ("latent", (torch.float16, (16, 4, 2, 2)), lambda value, n: bool((value == n).all())),
    ("tokens", (torch.int64, (16, 77)), lambda value, n: bool((value == n).all())),
    ("cls", (torch.int64, (16,)), lambda value, n: value == n % 10),
    ("text", None, lambda value, n: value == f"caption {n}"),
    ("json", None, lambda value, n: value == {"number": n}),
    ("key", None, lambda value, n: value == f"{n:06d}"),
]


@pytest.mark.parametrize(("field", "tensor", "right"), WHAT_ARRIVES)
def test_every_field_arrives_as_it_was_written(folder, field, tensor, right):
    batch = next(iter(loader(folder, ("key", field))))
    assert set(batch) == {"position", "key", field}
    if tensor:
        assert (batch[field].dtype, batch[field].shape) == tensor
    for value, key in zip(batch[field], batch["key"], strict=True):
        assert right(value, int(key))


def test_every_field_of_the_table_is_tested():
    assert {field for field, _, _ in WHAT_ARRIVES} == {*FIELDS, "key"}


def test_positions_are_those_in_the_global_batch(folder):
    batch = next(iter(loader(folder, rank=3, world_size=4)))
    assert batch["position"].dtype == torch.int64
    assert batch["position"].tolist() == [12, 13, 14, 15]


def tokenize(texts: list[str]) -> tuple[torch.Tensor, int]:
    return torch.tensor([[int(text.split()[1])] * 77 for text in texts]), 1


def test_missing_token_ids_are_made_on_the_fly_and_this_is_said_once(make_folder, caplog):
    folder = make_folder("text only", [40], fields=("txt",))
    with caplog.at_level(logging.WARNING):
        batches = loader(folder, ("tokens", "key"), tokenize=tokenize)
        for batch in islice(batches, 3):
            assert set(batch) == {"position", "tokens", "key"}
            assert batch["tokens"][:, 5].tolist() == [int(key) for key in batch["key"]]
    assert [message.split()[1] for message in caplog.messages] == ["shards", "longer"]
    assert "no tokens: made from text while training" in caplog.messages[0]
    assert batches.counts()["truncated_captions"] == 3


def encode(images: torch.Tensor) -> torch.Tensor:
    """Latents like those of tests/data/conftest.py, from the pictures' red."""
    return images[:, :1, ::4, ::4].repeat(1, 4, 1, 1).half()


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_latents_are_made_on_the_fly_as_they_would_be_stored(make_folder, caplog, workers):
    folder = make_folder("pictures", [40], fields=("png",))
    with caplog.at_level(logging.WARNING):
        made = list(islice(loader(folder, ("latent",), encode=encode, workers=workers), 4))
    assert [message[:54] for message in caplog.messages] == [
        "the shards hold no latent: made from image while train"
    ]
    stored = list(islice(loader(make_folder("all", [40]), ("latent",)), 4))
    for one, other in zip(made, stored, strict=True):
        assert one.keys() == other.keys()
        assert one["latent"].dtype == other["latent"].dtype == torch.float16
        assert torch.equal(one["latent"], other["latent"])


def test_latents_in_the_shards_are_preferred(folder):
    next(iter(loader(folder, ("latent",), encode=lambda images: 1 / 0)))


def test_token_ids_in_the_shards_are_preferred(folder):
    batch = next(iter(loader(folder, ("tokens", "key"), tokenize=lambda texts: 1 / 0)))
    assert batch["tokens"][:, 0].tolist() == [int(key) for key in batch["key"]]


MISSING = [
    ("latent", "latent: not in these shards; run `python -m data_prep latents`"),
    ("tokens", "tokens: not in these shards; run `python -m data_prep captions`"),
    ("image", "image: not in these shards"),
    ("cls", "cls: not in these shards"),
]


@pytest.mark.parametrize(("field", "message"), MISSING)
def test_a_missing_field_names_what_makes_it(make_folder, field, message):
    folder = make_folder("few", [20], fields=("txt", "json"))
    with pytest.raises(UserError, match=f"few: {message}"):
        loader(folder, (field,))


MAKERS = [
    ("latent", "vae", [VaeInfo(hash=name, scale=1.0) for name in "ab"]),
    ("tokens", "tokenizer", [TokenizerInfo(hash=name) for name in "ab"]),
]


@pytest.mark.parametrize(("field", "part", "makers"), MAKERS)
def test_two_makers_of_one_field_do_not_mix(make_folder, field, part, makers):
    folders = [
        make_folder(maker.hash, [20], first=20 * n, **{part: maker})
        for n, maker in enumerate(makers)
    ]
    loader(folders, ("text",))
    with pytest.raises(UserError, match=f"{part}: not the same"):
        loader(folders, (field,))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_stays_one_line(make_folder, workers):
    folder = make_folder("mixed", [40], side=lambda number: 8 + number % 2)
    with pytest.raises(UserError, match="image: samples of one batch differ in shape") as caught:
        next(iter(loader(folder, ("image",), workers=workers)))
    assert "\n" not in str(caught.value)


def npy(header: str) -> bytes:
    """A version 1 npy file of 154 bytes behind any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(154)


def huge_picture() -> bytes:
    """A picture of 8 x 8 that says it is of 60000 x 60000."""
    whole = bytearray(sample(0)[1]["png"])
    whole[16:24] = (60_000).to_bytes(4, "big") * 2
    whole[29:33] = crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


GARBLED = [
    ("png", b"\x89PNG but no picture"),
    ("latent.npy", b"\x93NUMPY\x01\x00"),
    ("tokens.npy", encode_npy(np.zeros(77, np.uint16))[:-2]),
    ("tokens.npy", npy("{'descr': '<u2', 'shape': (77,)}")),
    ("tokens.npy", npy("{'descr': 7, 'fortran_order': False, 'shape': (77,)}")),
    ("tokens.npy", npy("{'descr': '<u2', 'fortran_order': False, 'shape': 'many'}")),
    ("latent.npy", npy("{'descr': '>f2', 'fortran_order': False, 'shape': (77,)}")),
    ("latent.npy", npy("{'descr': '|V2', 'fortran_order': False, 'shape': (77,)}")),
    ("latent.npy", npy("[]")),
    ("png", huge_picture()),
    ("json", b"[" * 100_000),
    ("cls", b"9" * 20),
    ("txt", b"\xff\xfe"),
    ("json", b"{"),
    ("cls", b"seven"),
    ("nothing", b""),
]


@pytest.mark.parametrize(("member", "data"), GARBLED)
def test_garbled_bytes_are_a_bad_sample(member, data):
    for field in FIELDS.values():
        with pytest.raises(SampleError):
            field({member: data})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_replaced_logged_and_counted(folder, tmp_path, workers, caplog):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    flip(damaged / "000002.tar", place_of(folder, "000002", 4, "png") + 20)
    batches = loader(damaged, ("image", "key"), workers=workers)
    with caplog.at_level(logging.WARNING):
        seen = keys(batches, 8)
    whole = keys(loader(folder, ("image", "key")), 8)
    bad, instead = f"{20 + 7 + 4:06d}", f"{20 + 7 + 5:06d}"
    assert seen == [[instead if key == bad else key for key in batch] for batch in whole]
    assert 1 <= batches.stream.bad_samples == len(caplog.messages)
    assert "000002.tar" in caplog.messages[0]
    assert bad in caplog.messages[0]
    # Where the bytes of that member are not asked for, there is no damage.
    assert keys(loader(damaged, ("text", "key")), 8) == whole


@pytest.fixture
def cost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[list, list]]:
    """Random numbers drawn and samples read for two batches from a step on."""
    drawn, read = [], []
    bits, raw = lanes._bits, Shard.read
    monkeypatch.setattr(lanes, "_bits", lambda n, *a, **k: drawn.append(n) or bits(n, *a, **k))
    monkeypatch.setattr(Shard, "read", lambda *a: read.append(a[2]) or raw(*a))

    def measure(step: int) -> tuple[list, list]:
        drawn.clear()
        read.clear()
        batches = loader(folder)
        epoch, within = divmod(step, batches.stream.steps_per_epoch)
        batches.load_state_dict({**batches.state_dict(), "epoch": epoch, "step": within})
        list(islice(batches, 2))
        return list(drawn), list(read)

    return measure


def test_a_far_place_costs_what_the_first_does(cost):
    drawn, read = cost(0)
    assert cost(10**6) == (drawn, read)
    assert sum(drawn) < 100
    assert len(read) == 32


def test_loading_leaves_the_random_state_of_training_alone(folder):
    torch.manual_seed(5)
    alone = torch.rand(3)
    torch.manual_seed(5)
    next(iter(loader(folder, ("latent",))))
    assert torch.equal(torch.rand(3), alone)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        np.array(5, np.uint16),
        np.zeros((0, 3), np.int64),
    ],
)
def test_npy_bytes_are_read_as_numpy_reads_them(array, tmp_path):
    assert np.array_equal(decode_npy(encode_npy(array)), array)
    (tmp_path / "array.npy").write_bytes(encode_npy(array))
    assert np.array_equal(np.load(tmp_path / "array.npy"), array)
