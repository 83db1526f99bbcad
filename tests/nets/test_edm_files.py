"""EDM networks as folders, and from pickles in the layout of NVIDIA's."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stack.diffusion.karras import KarrasSchedule
from stack.nets.edm import EdmDenoiser, EdmNetwork, edm_network
from stack.nets.edm_blocks import CIFAR10, IMAGENET64, EdmConfig
from stack.nets.edm_files import import_edm, load_edm, save_edm
from stack.util.errors import UserError

SMALL = {"img_resolution": 16, "model_channels": 8, "num_blocks": 1}
CONFIGS = {
    "ddpm++": CIFAR10.model_copy(update=SMALL | {"channel_mult": (1, 2)}),
    "ddpm++, no classes": CIFAR10.model_copy(
        update=SMALL | {"channel_mult": (1, 2), "label_dim": 0}
    ),
    "adm": IMAGENET64.model_copy(update=SMALL | {"channel_mult": (1, 2), "label_dim": 7}),
}
every_config = pytest.mark.parametrize("name", CONFIGS)
KINDS = {"ddpm++": "SongUNet", "adm": "DhariwalUNet"}


def network(config: EdmConfig) -> EdmNetwork:
    torch.manual_seed(0)
    made = edm_network(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# NVIDIA's side, as far as it shows in a file: what torch_utils.persistence writes of a module.


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("was called")


class EasyDict(dict):
    pass


@contextmanager
def nvidia() -> Iterator[None]:
    """Their modules' names, there to be pickled by, and gone afterwards."""
    homes = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    before = {thing: thing.__module__ for thing in homes.values()}
    for home, thing in homes.items():
        for name in (home.partition(".")[0], home):
            sys.modules[name] = ModuleType(name)
        setattr(sys.modules[home], thing.__name__, thing)
        thing.__module__ = home
    try:
        yield
    finally:
        for home, thing in homes.items():
            thing.__module__ = before[thing]
            for name in (home.partition(".")[0], home):
                del sys.modules[name]


class Persistent:
    """Pickles as an object of a decorated class does."""

    def __init__(self, kind: str, state: dict[str, Any], source: str) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": kind,
            "state": state,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


def mirror(module: nn.Module, kind: str, source: str, **more: Any) -> Any:
    """Our module as theirs: a tree of persistent objects, with torch's own dicts of modules."""
    children = {
        name: mirror(child, type(child).__name__, source)
        for name, child in module.named_children()
        if not isinstance(child, nn.Identity)
    }
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(children),
    }
    if isinstance(module, nn.ModuleDict):
        made = nn.ModuleDict()
        made.__dict__.update(state)
        return made
    return Persistent(kind, state | {"skip_scale": np.sqrt(0.5), "_init_args": ()} | more, source)


def arguments(config: EdmConfig) -> dict[str, Any]:
    given: dict[str, Any] = {
        "img_resolution": config.img_resolution,
        "img_channels": 3,
        "label_dim": config.label_dim,
        "model_type": KINDS[config.architecture],
        "model_channels": config.model_channels,
        "channel_mult": list(config.channel_mult),
        "num_blocks": config.num_blocks,
        "dropout": 0.13,
        "use_fp16": True,
    }
    if config.architecture == "ddpm++":
        given |= {"embedding_type": "positional", "resample_filter": [1, 1], "augment_dim": 9}
        given |= {"encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1}
    return given


def nvidia_pickle(
    made: EdmNetwork,
    *,
    kind: str = "EDMPrecond",
    source: str = "",
    protocol: int = 4,
    left_out: Collection[str] = (),
    **given: Any,
) -> bytes:
    """The bytes of a network's file; ``given`` are further arguments of its constructor."""
    told = {name: v for name, v in arguments(made.config).items() if name not in left_out}
    outer = nn.Module()
    outer.model = made
    tree = mirror(outer, kind, source, _init_kwargs=told | given)
    data = {
        "ema": tree,
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}, source),
        "augment_pipe": None,
    }
    with nvidia():
        data["dataset_kwargs"] = EasyDict(path="cifar10-32x32.zip")
        return pickle.dumps(data, protocol)


@every_config
def test_a_saved_network_is_loaded_again(name: str, tmp_path: Path) -> None:
    made = network(CONFIGS[name]).to(memory_format=torch.channels_last)
    folder = save_edm(made, tmp_path / "deep" / "net")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "network.safetensors"]
    assert json.loads((folder / "config.json").read_text())["img_resolution"] == 16
    loaded = load_edm(folder)
    assert loaded.config == CONFIGS[name]
    assert same(loaded, made)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        made.map_layer0.bias += 1
    assert same(load_edm(save_edm(made, folder)), made)


def test_names_on_disk_are_the_denoisers(tmp_path: Path) -> None:
    denoiser = EdmDenoiser(network(CONFIGS["adm"]), KarrasSchedule())
    folder = save_edm(denoiser.model, tmp_path / "net")
    stored = load_file(folder / "network.safetensors")
    assert stored.keys() == denoiser.state_dict().keys()
    assert "model.enc.16x16_conv.weight" in stored


@pytest.mark.parametrize("protocol", [3, 4, 5])
@every_config
def test_a_pickle_in_nvidias_layout_is_imported(name: str, protocol: int, tmp_path: Path) -> None:
    made, sentinel = network(CONFIGS[name]), tmp_path / "ran"
    source = f"open({str(sentinel)!r}, 'w')"
    file = tmp_path / "net.pkl"
    file.write_bytes(nvidia_pickle(made, source=source, protocol=protocol))
    folder = import_edm(file, tmp_path / "net")
    loaded = load_edm(folder)
    assert loaded.config == CONFIGS[name]
    assert same(loaded, made)
    assert not sentinel.exists()
    assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (CIFAR10, {"channel_mult": (1, 2, 2, 2), "num_blocks": 4}),
        (IMAGENET64, {"channel_mult": (1, 2, 3, 4), "num_blocks": 3, "model_type": None}),
    ],
    ids=["ddpm++", "adm"],
)
def test_arguments_that_a_file_leaves_out_are_those_of_its_constructor(
    config: EdmConfig, left_out: dict[str, Any], tmp_path: Path
) -> None:
    fields = {name: value for name, value in left_out.items() if value}
    config = config.model_copy(update=SMALL | {"model_channels": 4, "label_dim": 2} | fields)
    file = tmp_path / "net.pkl"
    file.write_bytes(nvidia_pickle(network(config), left_out=left_out))
    assert load_edm(import_edm(file, tmp_path / "net")).config == config


NESTED_LISTS: list[Any] = []
for _ in range(60):
    NESTED_LISTS = [NESTED_LISTS, NESTED_LISTS]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "preconditioning": ({"kind": "VPPrecond"}, "'VPPrecond': only networks with EDM's"),
    "architecture": ({"model_type": "UViT"}, "model_type: 'UViT' is none of SongUNet, Dhariwal"),
    "NCSN++": ({"embedding_type": "fourier"}, "embedding_type: 'fourier', of which only 'positio"),
    "filter": ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter: \[1, 3, 3, 1\], of which"),
    "unknown": ({"resample": "box"}, "resample: Extra inputs are not permitted"),
    "type": ({"num_blocks": "one"}, "num_blocks: Input should be a valid integer"),
    "more blocks": ({"num_blocks": 2}, r"model\.enc\.\S+: absent, but by the network's config"),
    "wider": ({"model_channels": 16}, r"\(8, 3, 3, 3\), but by the network's config \(16, 3,"),
    "levels of no width": ({"channel_mult": [0]}, r"channel_mult\.0: Input should be gre.* \(0\)"),
    "many blocks": ({"num_blocks": 10**9}, "num_blocks: Input should be less than or equal to 32"),
    "many levels": ({"channel_mult": [1] * 12}, "channel_mult: Tuple should have at most 8 items"),
    "wide": ({"model_channels": 2**40}, "model_channels: Input should be less than or equal to"),
    "large": ({"img_resolution": 2**40}, "img_resolution: Input should be less than or equal to"),
    "halved too often": ({"channel_mult": [1] * 6}, "channel_mult: 6 levels, but .* for 5 of them"),
    "an odd size": ({"img_resolution": 20, "channel_mult": [1] * 4}, "4 levels, but .* 20 pixels"),
    "attention of no size": ({"attn_resolutions": [0]}, r"attn_resolutions\.0: Input should be gr"),
    "a long argument": (
        {"resample_filter": [1] * 500_000},
        r"resample_filter: \[1, .*\.\.\.\], of",
    ),
    "a long name": ({"x\x1b" * 500_000: 1}, r"'x\\x1bx\\x1b.*\.\.\.\S+': Extra inputs"),
    "long and nested": (
        {"num_blocks": NESTED_LISTS},
        "num_blocks: Input should be a valid integer",
    ),
    "fewer classes": ({"label_dim": 0}, r"model\.map_label\.weight: \(8, 10\), but .* absent"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_network_is_refused(case: str, tmp_path: Path) -> None:
    given, message = WRONG[case]
    file = tmp_path / "net.pkl"
    file.write_bytes(nvidia_pickle(network(CONFIGS["ddpm++"]), **given))
    with pytest.raises(UserError, match=message) as refusal:
        import_edm(file, tmp_path / "out")
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == [file]


def test_import_leaves_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: is there already"):
        import_edm(tmp_path / "net.pkl", tmp_path / "out")
    with pytest.raises(UserError, match=r"net\.pkl: no such file"):
        import_edm(tmp_path / "net.pkl", tmp_path / "new")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut(folder: Path) -> None:
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def one_less(folder: Path) -> None:
    path = folder / "network.safetensors"
    weights = load_file(path)
    del weights["model.out_conv.bias"]
    save_file(weights, path)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), r"net: config\.json: no such file; an EDM network is"),
    "no weights": (without("network.safetensors"), r"network\.safetensors: no such file"),
    "unknown field": (configured(depth=3), r"config\.json: depth: Extra inputs"),
    "no such kind": (configured(architecture="vit"), r"architecture: Input should be 'ddpm\+\+'"),
    "another size": (configured(num_blocks=2), r"safetensors: model\.enc\S+: absent, but by the"),
    "cut": (cut, "not a safetensors file"),
    "a tensor is missing": (one_less, r"model\.out_conv\.bias: absent, but by .* \(3,\)"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    folder = save_edm(network(CONFIGS["adm"]), tmp_path / "net")
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_edm(folder)
