"""Real runs on data that is damaged, breaks under way, or lacks what training reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from data_prep.shards import ShardFolder, Tally
from stack.cli import main
from stack.config.load import load_recipe
from stack.data.index import Manifest
from stack.data.stream import ShardStream
from stack.train.build import stream_of
from stack.train.build_distill import build_distill
from tests import forked
from tests.data.damage import ruin
from tests.pipeline import World, metrics_of, recipe_fields, write_recipe

_PATIENCE = 300.0
TWO_RANKS = {"backend": "ddp", "processes": 2}
EPOCH = 6
"""Steps of 8 samples in the 52 of the world."""


def recipe_of(
    folder: Path, world: World, data: Path, iterations: int = EPOCH + 4, **changed
) -> Path:
    """A recipe over other data in the world; `changed` are fields of its data section."""
    fields = recipe_fields(world, parallel=TWO_RANKS, iterations=iterations)
    fields["data"] |= {"folders": [str(data)], **changed}
    return write_recipe(folder, fields)


def last_words(ranks: list[forked.Fork]) -> str:
    """The one line with which all ranks stop, with status 2."""
    lines = []
    for rank in ranks:
        _, told = rank.communicate(timeout=_PATIENCE)
        assert rank.returncode == 2, told
        assert "Traceback" not in told
        lines.append([line for line in told.splitlines() if line.startswith("error:")])
    assert lines[0] == lines[1]
    (line,) = lines[0]
    return line


@pytest.fixture
def damaged(world: World, tmp_path: Path) -> Path:
    """The world's data, the first of whose three shards is ruined."""
    folder = Path(shutil.copytree(world.data, tmp_path / "damaged"))
    ruin(folder, "000000")
    return folder


def ruined(recipe: Path, data: Path, steps: int) -> list[str]:
    """Keys of the samples of the first shard that come in so many steps, in order."""
    recipe_data = load_recipe(recipe, [f"data.folders=[{data}]"]).data
    samples = islice(stream_of(recipe_data, seed=0), steps * recipe_data.global_batch)
    keys = [sample["key"] for sample in samples]
    return [key for key in keys if int(key) < Manifest.read(data).shards[0].samples]


def named(told: str, data: Path) -> list[str]:
    """Keys of the damaged samples that are told of, a line each."""
    line = rf"^{data}/000000\.tar: (\d+): latent\.npy: crc32 does not match; \d+ instead$"
    return re.findall(line, told, re.MULTILINE)


@pytest.mark.slow
def test_two_ranks_train_on_within_a_budget_and_tell_what_both_replaced(world, tmp_path, damaged):
    """Each sample once on the terminal, which only the first rank owns, and all in the counts,
    over a resume too."""
    recipe = recipe_of(tmp_path, world, damaged, bad_samples=0.9)
    keys = ruined(recipe, world.data, EPOCH + 4)
    before = len(ruined(recipe, world.data, 4))
    for options, told_now in (["iterations=4"], keys[:before]), (["--resume"], keys[before:]):
        ranks = forked.start_ranks("stack", "distill", recipe, *options, ranks=2)
        for rank in ranks:
            assert rank.wait(_PATIENCE) == 0, rank.communicate()[1]
        assert named(ranks[0].communicate()[1], damaged) == told_now
    rows = metrics_of(tmp_path / "run")
    assert max(rows) == EPOCH + 4
    for step in range(1, EPOCH + 5):
        assert rows[step]["bad_samples"] == len(ruined(recipe, world.data, step))


@pytest.mark.slow
def test_two_ranks_stop_with_one_line_when_the_budget_is_spent(world, tmp_path, damaged):
    recipe = recipe_of(tmp_path, world, damaged)
    line = last_words(forked.start_ranks("stack", "distill", recipe, ranks=2))
    first, *more = ruined(recipe, world.data, 1)
    assert re.fullmatch(
        rf"error: {recipe}: data.bad_samples: {1 + len(more)} damaged of the 48 samples of epoch "
        rf"0, more than 0.10% \(first: {damaged}/000000.tar: {first}: latent.npy: crc32 does not "
        r"match; \d+ instead\); run python -m data_prep verify",
        line,
    )


def test_a_resume_within_an_epoch_has_only_what_is_left_of_its_budget(
    world, tmp_path, damaged, capsys
):
    """Neither half of the epoch alone would spend it."""
    alone = ["parallel.backend=none", "parallel.processes=1"]
    recipe = recipe_of(tmp_path, world, damaged, iterations=EPOCH)
    keys = ruined(recipe, world.data, EPOCH)
    half = len(ruined(recipe, world.data, EPOCH // 2))
    share = max(half, len(keys) - half) / (8 * EPOCH)
    assert 0 < half < len(keys)
    given = ["distill", str(recipe), *alone, f"data.bad_samples={share}"]
    assert main([*given, f"iterations={EPOCH // 2}"]) == 0
    assert main([*given, "--resume"]) == 2
    told = capsys.readouterr().err
    assert f"damaged of the {8 * EPOCH} samples of epoch 0" in told
    assert f"(first: {damaged}/000000.tar: {keys[0]}: " in told


def in_small_shards(world: World, out: Path) -> Path:
    """The world's data in shards of four samples."""
    target, known = ShardFolder(out, {}), Manifest.read(world.data)
    stream = ShardStream(world.data, global_batch=1, lanes=1, seed=0, window=1)
    samples = sorted(islice(stream, known.samples), key=lambda sample: sample["key"])
    for first in range(0, known.samples, 4):
        rows = [
            (sample["key"], {k: v for k, v in sample.items() if k not in ("key", "position")})
            for sample in samples[first : first + 4]
        ]
        target.write(f"{first // 4:06d}.tar", rows, Tally())
    target.finish(vae=known.vae, tokenizer=known.tokenizer, resolution=known.resolution)
    return out


def read_by_one_rank_at_a_time(recipe: Path, steps: int) -> int:
    """A shard that in no step is read by both ranks."""
    data = load_recipe(recipe).data
    lanes = stream_of(data, seed=0).lanes
    both = set[int]()
    for step in range(steps):
        halves = lanes.locate(step)[0].reshape(2, -1).tolist()
        both |= set(halves[0]) & set(halves[1])
    return min(set(range(13)) - both)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_both_ranks_stop_when_the_data_of_one_breaks(world, tmp_path, workers):
    data = in_small_shards(world, tmp_path / "small")
    recipe = recipe_of(tmp_path, world, data, iterations=10**5, workers=workers)
    shard = read_by_one_rank_at_a_time(recipe, 3 * EPOCH)
    gate = tmp_path / "gate"
    ranks = forked.start_ranks("tests.train.gated", gate, "1", "distill", recipe, ranks=2)
    deadline = time.monotonic() + _PATIENCE
    while not gate.with_suffix(".reached").exists():
        assert ranks[0].poll() is None, ranks[0].communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tar = data / f"{shard:06d}.tar"
    size = tar.stat().st_size
    os.truncate(tar, 0)
    gate.touch()
    line = last_words(ranks)
    assert line == f"error: {tar}: bytes: 0 on disk, {size} in its manifest"
    assert max(metrics_of(tmp_path / "run")) < 3 * EPOCH


def test_latents_and_ids_made_while_training_are_those_that_would_be_stored(
    world, tmp_path, caplog
):
    batches = []
    for number, folder in enumerate((world.data, world.shards)):
        fields = recipe_fields(world)
        fields["data"]["folders"] = [str(folder)]
        recipe = load_recipe(write_recipe(tmp_path / str(number), fields))
        source = build_distill(recipe).source
        batches.append(list(chain(*(source.take() for _ in range(3)))))
    for stored, made in zip(*batches, strict=True):
        assert torch.equal(stored.positions, made.positions)
        assert torch.equal(stored.c, made.c)
        assert stored.x0.dtype == made.x0.dtype
        torch.testing.assert_close(made.x0, stored.x0, rtol=2e-3, atol=1e-4)
    said = Counter(message.partition(":")[0] for message in caplog.messages)
    assert said["the shards hold no latent"] == said["the shards hold no tokens"] == 1
    assert json.loads((world.shards / "manifest.json").read_text())["vae"] is None
