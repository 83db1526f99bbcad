"""`data_prep latents`: the means of one autoencoder, in new shards, composing with captions."""

from __future__ import annotations

import io
import json
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import workers
from data_prep.shards import JOURNAL, ShardFolder, Tally
from stack.data.batch import BatchLoader
from stack.data.decode import decode_npy
from stack.data.index import MANIFEST, Manifest
from stack.data.stream import ShardStream
from stack.nets.vae import from_uint8, load_vae, vae_hash
from tests import forked


def write(path: Path, sides: list[int], *, bad: int | None = None) -> Path:
    """Shards of four random pictures, row `bad` no picture at all."""
    random, folder = np.random.default_rng(0), ShardFolder(path, {})
    for start in range(0, len(sides), 4):
        rows = []
        for number, side in list(enumerate(sides))[start : start + 4]:
            image = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(image, "png")
            png = b"no picture" if number == bad else image.getvalue()
            rows.append((f"{number:03d}", {"png": png, "txt": f"a {number}".encode()}))
        folder.write(f"{start // 4:06d}.tar", rows, Tally())
    folder.finish(resolution=sides[0])
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*")}


def samples(folder: Path, count: int) -> dict[str, dict[str, bytes]]:
    stream = ShardStream(folder, global_batch=count, lanes=1, seed=0)
    return {sample["key"]: sample for sample in islice(stream, count)}


def test_latents_are_the_means_of_the_autoencoder(tmp_path, pipeline, run):
    shards, out = write(tmp_path / "shards", [8] * 10), tmp_path / "out"
    status, said, _ = run("latents", shards, out, "--vae", pipeline(0), "--batch-size", 3)
    assert status == 0
    assert "10 samples in 3 shards (latent.npy png txt)" in said
    manifest = Manifest.read(out)
    assert (manifest.vae.hash, manifest.vae.scale) == (vae_hash(pipeline(0)), 0.5)
    assert manifest.resolution == 8
    assert manifest.code["latents"].startswith(version("f-distill"))
    vae = load_vae(pipeline(0))
    before = samples(shards, 10)
    for key, sample in samples(out, 10).items():
        assert (sample["png"], sample["txt"]) == (before[key]["png"], before[key]["txt"])
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        pixels = from_uint8(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        latent = decode_npy(sample["latent.npy"])
        assert (latent.dtype, latent.shape) == (np.float16, (4, 4, 4))
        with torch.no_grad():
            mean = vae.encode_mean(pixels)[0]
        assert torch.allclose(torch.from_numpy(latent.copy()).float(), mean, atol=2e-3)


def test_images_can_be_dropped(tmp_path, pipeline, run):
    shards, out = write(tmp_path / "shards", [8] * 4), tmp_path / "out"
    assert run("latents", shards, out, "--vae", pipeline(0), "--drop-images")[0] == 0
    manifest = Manifest.read(out)
    assert manifest.fields == {"txt": 4, "latent.npy": 4}
    assert manifest.resolution == 8


def test_latents_and_captions_compose_in_either_order(tmp_path, pipeline, run):
    shards, teacher = write(tmp_path / "shards", [8] * 10), pipeline(0)
    for first, second in (("latents", "captions"), ("captions", "latents")):
        option = {"latents": "--vae", "captions": "--tokenizer"}
        middle, end = tmp_path / f"{first} first", tmp_path / f"{second} second"
        assert run(first, shards, middle, option[first], teacher)[0] == 0
        assert run(second, middle, end, option[second], teacher)[0] == 0
        manifest = Manifest.read(end)
        assert manifest.vae
        assert manifest.tokenizer
        assert manifest.counts == {"changed": 0, "truncated": 0, "empty": 0}
        stream = ShardStream(end, global_batch=10, lanes=5, seed=0)
        batch = next(iter(BatchLoader(stream, ("image", "latent", "tokens", "text"))))
        assert batch["latent"].shape == (10, 4, 4, 4)
        assert batch["tokens"].shape == (10, 77)
    one, two = files(tmp_path / "captions second"), files(tmp_path / "latents second")
    assert one == two


def test_a_killed_run_continues(tmp_path, pipeline, run):
    shards = write(tmp_path / "shards", [8] * 10)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("latents", shards, whole, "--vae", pipeline(0))[0] == 0
    assert run("latents", shards, out, "--vae", pipeline(0))[0] == 0
    # As a run killed in its third shard leaves it: two lines in the journal, and no manifest.
    journal = ShardFolder(tmp_path / "other", Manifest.read(out).origin)
    lines = (journal.out / JOURNAL).read_text()
    manifest = Manifest.read(out)
    fields = {"fields": dict.fromkeys(("png", "txt", "latent.npy"), 4), "sizes": {}, "counts": {}}
    for entry in manifest.shards[:2]:
        lines += ShardFolder.journal_line(entry, Tally(**fields))
    (out / MANIFEST).unlink()
    (out / JOURNAL).write_text(lines)
    (out / "000002.tar").rename(out / ".000002.tar.part")
    kept = (out / "000001.tar").stat().st_mtime_ns
    status, _, error = run("latents", shards, out, "--vae", pipeline(1))
    assert (status, "holds shards made with another vae" in error) == (2, True)
    assert run("latents", shards, out, "--vae", pipeline(0))[0] == 0
    assert (out / "000001.tar").stat().st_mtime_ns == kept
    assert files(out) == files(whole)
    assert (out / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()


def test_an_image_that_cannot_be_read_is_dropped_and_counted(tmp_path, pipeline, run):
    shards = write(tmp_path / "shards", [8] * 6, bad=1)
    status, said, _ = run("latents", shards, tmp_path / "out", "--vae", pipeline(0))
    assert status == 0
    assert "5 samples" in said
    assert "1 dropped" in said


def test_images_of_several_sizes_are_encoded_with_their_like(tmp_path, pipeline, run):
    sides = [8, 16, 8, 8, 16, 4, 8]
    shards, out = write(tmp_path / "shards", sides), tmp_path / "out"
    assert run("latents", shards, out, "--vae", pipeline(0), "--batch-size", 2)[0] == 0
    vae = load_vae(pipeline(0))
    found = samples(out, 7)
    assert sorted(found) == [f"{n:03d}" for n in range(7)]
    for number, side in enumerate(sides):
        sample = found[f"{number:03d}"]
        latent = decode_npy(sample["latent.npy"])
        assert latent.shape == (4, side // 2, side // 2)
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        pixels = from_uint8(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        with torch.no_grad():
            mean = vae.encode_mean(pixels)[0]
        assert torch.allclose(torch.from_numpy(latent.copy()).float(), mean, atol=2e-3)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as forks of a process that has imported what they need."""

    def context(kind: str) -> Any:
        assert kind == "spawn", "CUDA does not survive a fork"
        return forked.context()

    monkeypatch.setattr(workers.multiprocessing, "get_context", context)


@pytest.mark.usefixtures("forks")
def test_several_devices_make_the_same_bytes(tmp_path, pipeline, run):
    shards = write(tmp_path / "shards", [8] * 18)
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        status, _, error = run(
            "latents", shards, tmp_path / name, "--vae", pipeline(0), "--device", device
        )
        assert status == 0, error
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert Manifest.read(tmp_path / "one") == Manifest.read(tmp_path / "two")


@pytest.mark.usefixtures("forks")
def test_a_mistake_in_a_worker_is_one_line(tmp_path, pipeline, run):
    shards = write(tmp_path / "shards", [8] * 4 + [7])
    status, _, error = run(
        "latents", shards, tmp_path / "out", "--vae", pipeline(0), "--device", "cpu,cpu"
    )
    assert status == 2
    assert "004: 7x7 pixels do not divide by the VAE's 2" in error.splitlines()[-1]


def test_clip_embeddings_are_those_of_transformers(tmp_path, pipeline, run):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 100},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=12,
        )
    ).eval()
    model.save_pretrained(tmp_path / "clip")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    prepared = {"image_mean": mean, "image_std": std, "size": {"shortest_edge": 16}}
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(prepared))
    shards, out = write(tmp_path / "shards", [64] * 3), tmp_path / "out"
    status, said, _ = run(
        *("latents", shards, out, "--vae", pipeline(0), "--clip", tmp_path / "clip")
    )
    assert status == 0
    assert "(clip.npy latent.npy png txt)" in said
    for sample in samples(out, 3).values():
        image = Image.open(io.BytesIO(sample["png"])).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255 - mean) / std
        values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            expected = model.get_image_features(pixel_values=values)
        expected = getattr(expected, "pooler_output", expected)[0]
        found = torch.from_numpy(decode_npy(sample["clip.npy"]).copy()).float()
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9995
    origin = Manifest.read(out).origin
    assert len(origin["clip"]) == 64
    status, _, error = run(
        "latents", shards, tmp_path / "x", "--vae", pipeline(0), "--clip", shards
    )
    assert (status, "config.json: no such file" in error) == (2, True)


def captions_only(tmp_path: Path) -> Path:
    folder = ShardFolder(tmp_path / "shards", {})
    folder.write("000000.tar", [("0", {"txt": b"a"})], Tally())
    folder.finish()
    return folder.out


BAD = [
    (captions_only, [], r"shards: png\|jpg\|jpeg\|webp: not every sample has an image"),
    (lambda tmp: write(tmp / "shards", [7]), [], "000: 7x7 pixels do not divide by the VAE's 2"),
    (lambda tmp: write(tmp / "shards", [8]), ["--device", "tpu9"], "--device: tpu9: "),
    (lambda tmp: tmp / "shards", [], "shards: no such folder of shards"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD)
def test_bad_input_is_one_line(tmp_path, pipeline, run, make, options, message):
    import re

    shards = make(tmp_path)
    status, _, error = run("latents", shards, tmp_path / "out", "--vae", pipeline(0), *options)
    assert status == 2
    line = error.strip().splitlines()[-1]
    assert re.match(f"error: .*{message}", line), line


def test_two_autoencoders_are_never_mixed(tmp_path, pipeline, run):
    shards, out = write(tmp_path / "shards", [8] * 4), tmp_path / "out"
    assert run("latents", shards, out, "--vae", pipeline(0))[0] == 0
    before = files(out)
    for source, target, message in [
        (shards, out, "out: holds shards made with another vae"),
        (out, tmp_path / "new", "out: vae: holds latents of another autoencoder"),
    ]:
        status, _, error = run("latents", source, target, "--vae", pipeline(1))
        assert status == 2
        assert message in error
    assert files(out) == before
    assert not (tmp_path / "new").exists()
