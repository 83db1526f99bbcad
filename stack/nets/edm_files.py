"""EDM networks on disk: a folder with ``network.safetensors`` and ``config.json``, and of a student
``sampler.json``, which says in how many steps it is sampled.

Tensors have the names of NVIDIA's state dicts, ``model.`` in front. Their published files are
pickles that carry Python source; :func:`import_edm` reads the numbers out of one.
"""

from __future__ import annotations

import io
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stack.nets.edm import EdmNetwork, edm_network
from stack.nets.edm_blocks import EdmConfig
from stack.util.errors import UserError
from stack.util.files import read_json, write_json
from stack.util.inert_pickle import Call, load_inert, shown
from stack.util.retry import reason

WEIGHTS, CONFIG, SAMPLER = "network.safetensors", "config.json", "sampler.json"
_PREFIX = "model."
_RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
_MODULE_DICT = "torch.nn.modules.container.ModuleDict"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_STORAGE = "torch.storage._load_from_bytes"
_SCALAR = "numpy.core.multiarray.scalar"
_NAME = re.compile(r"[A-Za-z0-9_]{1,60}")
"""Of fields, modules and tensors."""

ALLOWED = frozenset(
    {
        *(_RECONSTRUCT, _MODULE_DICT, _PARAMETER, _TENSOR, _STORAGE),
        # Square roots that the constructors were given; numpy 2 writes the second name.
        *("numpy.dtype", _SCALAR, "numpy._core.multiarray.scalar"),
    }
)
PLAIN = {"builtins.set": set, "collections.OrderedDict": dict, "dnnlib.util.EasyDict": dict}
"""All that NVIDIA's network files name: calls that stay inert, and containers."""

_CONSTRUCTORS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "architecture": "ddpm++",
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
    },
    "DhariwalUNet": {
        "architecture": "adm",
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
"""By NVIDIA's class name: the values of arguments that a file leaves out."""
_KNOWN = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
"""Arguments of which these networks have one value; NCSN++ has others."""
_OF_TRAINING = ("use_fp16", "dropout", "label_dropout", "sigma_min", "sigma_max")
"""Arguments on which the finished network does not depend."""


def save_edm(network: EdmNetwork, out: Path, *, steps: int | None = None) -> Path:
    """Write a network's folder, in place of what is there.

    Args:
        steps: that it is made to be sampled in, 1 for a student; None where any number goes.
    """
    weights = {_PREFIX + name: tensor for name, tensor in network.state_dict().items()}
    return _save(weights, network.config, out, steps)


def load_edm(folder: str | Path, *, dropout: float = 0.0, augmentation: bool = True) -> EdmNetwork:
    """The network of a folder, in float32.

    Args:
        dropout: see :func:`edm_network`.
        augmentation: keep the input for what augmentation did, which only training gives.

    Raises:
        UserError: a file is missing, or the two do not fit each other.
    """
    folder, config = Path(folder), edm_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: not a safetensors file ({error})") from None
    network = _fitting(config, dropout, {n: t.shape for n, t in weights.items()}, folder / WEIGHTS)
    network.to_empty(device="cpu")
    network.load_state_dict({name.removeprefix(_PREFIX): t for name, t in weights.items()})
    if not augmentation:
        network.map_augment = None  # type: ignore[assignment]
        network.config = config.model_copy(update={"augment_dim": 0})
    return network


def edm_config(folder: str | Path) -> EdmConfig:
    """The config of a network's folder.

    Raises:
        UserError: a file is missing, or the config is of no network known here.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: {name}: no such file; an EDM network is a folder that stack fetch "
                "RECIPE (NVIDIA's), stack import-edm or stack pretrain makes"
            )
    return valid_config(read_json(folder / CONFIG), str(folder / CONFIG))


def edm_steps(folder: str | Path) -> int | None:
    """Steps that a folder's network is made to be sampled in, None where it does not say.

    Raises:
        UserError: its file of them is garbled.
    """
    file = Path(folder) / SAMPLER
    if not file.is_file():
        return None
    told = read_json(file)
    steps = told.get("steps") if isinstance(told, dict) else told
    if type(steps) is not int or steps < 1:
        raise UserError(f"{file}: steps: {steps!r}: not a number from 1; export the student again")
    return steps


def import_edm(file: Path, out: Path) -> Path:
    """Write the averaged network (``ema``) of one of NVIDIA's pickles as a folder.

    Nothing in the file is run: see :mod:`stack.util.inert_pickle`.

    Raises:
        UserError: the file names anything beyond ``ALLOWED`` and ``PLAIN``, or is laid out in
            another way, or is of a network that this project does not have, or holds a number that
            is not finite; or ``out`` exists.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder")
    try:
        with open(file, "rb") as opened:
            data = load_inert(opened, file, ALLOWED, plain=PLAIN)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file") from None
    try:
        config, calls = _network(data, str(file))
        shapes = {name: torch.Size(call.args[2]) for name, call in calls.items()}
        _fitting(config, 0.0, shapes, file)
        count, size = sum(map(math.prod, shapes.values())), file.stat().st_size
        if count > size:
            raise ValueError(f"tensors of {count} numbers in {size} bytes")
        weights = {name: _tensor(call, f"{file}: {name}") for name, call in calls.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise UserError(
            f"{file}: not laid out as NVIDIA's EDM networks are ({kind}: {error})"
        ) from None
    return _save(weights, config, out)


def _save(
    weights: Mapping[str, Tensor], config: EdmConfig, out: Path, steps: int | None = None
) -> Path:
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(plain, staging / WEIGHTS, metadata={"format": "pt"})
    write_json(staging / CONFIG, config.model_dump(mode="json"))
    if steps:
        write_json(staging / SAMPLER, {"steps": steps})
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return out


def valid_config(values: Any, source: str) -> EdmConfig:
    """A config from its fields' values.

    Raises:
        UserError: one does not hold, told as "source: field: ...".
    """
    try:
        return EdmConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UserError(f"{source}: {first['msg'].removeprefix('Value error, ')}") from None
        # A field's name may come out of a stranger's file.
        field = ".".join(str(p) if _NAME.fullmatch(str(p)) else shown(p) for p in first["loc"])
        raise UserError(f"{source}: {field}: {first['msg']} ({shown(first['input'])})") from None


def _fitting(
    config: EdmConfig, dropout: float, shapes: Mapping[str, torch.Size], path: Path
) -> EdmNetwork:
    """The network of a config, on the meta device, if its tensors have these names and shapes."""
    with torch.device("meta"):
        network = edm_network(config, dropout)
    wanted = {_PREFIX + name: tensor.shape for name, tensor in network.state_dict().items()}
    for name in (*wanted, *shapes):
        if wanted.get(name) != shapes.get(name):
            found, due = (tuple(s[name]) if name in s else "absent" for s in (shapes, wanted))
            raise UserError(f"{path}: {name}: {found}, but by the network's config {due}")
    return network


# NVIDIA's pickles: a dict whose "ema" is a tree of modules, each a call of _RECONSTRUCT with the
# class's name, its source (never looked at) and its attributes.


def _network(data: Any, source: str) -> tuple[EdmConfig, dict[str, Call]]:
    """Config, and the calls that would have made each tensor."""
    ema = data["ema"]
    kind, state = _module(ema)
    if kind != "EDMPrecond":
        raise UserError(
            f"{source}: {shown(kind)}: only networks with EDM's preconditioning are known"
        )
    calls: dict[str, Call] = {}
    for name, call in _tensors(ema, "", set()):
        if calls.setdefault(name, call) is not call:
            raise ValueError(f"two tensors are called {name}")
    return _config(state["_init_kwargs"], source), calls


def _module(call: Call) -> tuple[str, dict[str, Any]]:
    """A module's class name and attributes."""
    if call.name == _MODULE_DICT:
        return "ModuleDict", call.state
    if call.name != _RECONSTRUCT:
        raise TypeError(f"{call.name} is no module")
    return call.args[0]["class_name"], call.args[0]["state"]


def _config(arguments: Mapping[str, Any], source: str) -> EdmConfig:
    """From what the constructor was called with."""
    given = dict(arguments)
    kind = given.pop("model_type", "DhariwalUNet")
    if kind not in _CONSTRUCTORS:
        raise UserError(
            f"{source}: model_type: {shown(kind)} is none of {', '.join(_CONSTRUCTORS)}"
        )
    for name, known in _KNOWN.items():
        value = given.pop(name, known)
        if value != known:
            raise UserError(f"{source}: {name}: {shown(value)}, of which only {known!r} is known")
    for name in _OF_TRAINING:
        given.pop(name, None)
    return valid_config(_CONSTRUCTORS[kind] | given, source)


def _tensors(call: Call, prefix: str, seen: set[Call]) -> Iterator[tuple[str, Call]]:
    """(name, call of ``_TENSOR``) of parameters and buffers, depth first."""
    if call in seen:
        raise ValueError(f"{prefix} is a module that another one holds too")
    seen.add(call)
    _, state = _module(call)
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in state[kind].items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{prefix}: {shown(name)} is no name")
            if value is None:
                continue
            if kind == "_modules":
                yield from _tensors(value, f"{prefix}{name}.", seen)
                continue
            made = value.args[0] if value.name == _PARAMETER else value
            if made.name != _TENSOR:
                raise TypeError(f"{prefix}{name} is no tensor")
            yield prefix + name, made


def _tensor(call: Call, source: str) -> Tensor:
    """Float32, from the bytes that torch.save made of its storage."""
    made, offset, size, stride = call.args[:4]
    if made.name != _STORAGE:
        raise TypeError(f"{made.name} is no storage")
    try:
        storage = torch.load(io.BytesIO(made.args[0]), map_location="cpu", weights_only=True)
    # Foreign bytes make torch raise errors of any kind.
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "GLOBAL" in line]
        raise UserError(f"{source}: refused: {(lines or [reason(error)])[0]}") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UserError(f"{source}: refused: holds a {type(storage).__name__}, not a storage")
    numbers = torch.empty(0, dtype=storage.dtype).set_(storage)
    extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if extent != math.prod(size):
        raise UserError(f"{source}: refused: strides {shown(stride)} do not fill {tuple(size)}")
    if not 0 <= offset <= len(numbers) - extent:
        raise UserError(f"{source}: refused: lies outside its storage of {len(numbers)} numbers")
    values = numbers.as_strided(size, stride, offset).float()
    if not values.isfinite().all():
        raise UserError(f"{source}: refused: holds numbers that are not finite")
    return values
