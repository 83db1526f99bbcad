"""The doctor's checks of a node by itself: machine, packages, attention."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import stack
from stack.nets.attention import processor
from stack.train.build import device_of
from stack.train.provenance import provenance
from stack.util.code import code_hash
from stack.verbs.doctor_findings import Finding

PINS = Path(stack.__file__).parent.parent / "requirements.txt"
_QUERIES, _TOKENS = 64, 77
_TOLERANCE = {True: 0.05, False: 1e-3}
"""Greatest error relative to the greatest value, with bfloat16 and without."""
_BUSY = 0.1
"""Share of a GPU's memory that may be in use before a rank has put anything there."""

Shape = tuple[int, int, int]
"""Channels, heads and width of the text of an attention layer."""


def machine(device_name: str) -> Iterator[Finding]:
    """System, processors and memory; GPUs with their driver, and whether this rank's is free."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("ok", f"{platform.system()} {platform.release()}", fact="system")
    yield Finding("ok", platform.python_version(), fact="python")
    yield Finding("ok", str(os.cpu_count()), fact="CPUs")
    # Two digits: equal machines differ in the last megabytes.
    yield Finding("ok", f"{float(f'{pages / 2**30:.2g}'):.0f} GiB", fact="memory")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    yield Finding("ok", kinds or "none", fact="GPUs")
    if shutil.which("nvidia-smi"):
        yield Finding("ok", _driver(), fact="driver")
    device = device_of(device_name)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if total - free > _BUSY * total:
            yield Finding(
                "warn",
                f"{device}: another process holds {(total - free) / 1e9:.0f} GB of its "
                f"{total / 1e9:.0f} GB; end it (nvidia-smi)",
            )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.split("\n")[0].strip() or f"nvidia-smi: {done.stderr.strip()[:60]}"


def packages(backend: str, pins: Path = PINS) -> Iterator[Finding]:
    """Versions of what a run depends on, this code's hash too, and the pins that they miss."""
    facts = json.loads(provenance(code_hash=code_hash(), seed=0, backend=backend, devices=[]))
    versions: dict[str, str] = facts["packages"]
    for name, found in versions.items():
        yield Finding("ok", found, fact=name)
    yield Finding("ok", str(facts["cuda"]), fact="CUDA")
    yield Finding("ok", facts["code"][:12], fact="code")
    if backend.startswith("zero") and versions["deepspeed"] == "not installed":
        yield Finding(
            "fail", f"deepspeed: not installed, but parallel.backend is {backend}; pip install it"
        )
    pinned = pins.read_text() if pins.is_file() else ""
    for name, pin in re.findall(r"^([\w-]+)==([^\s;]+)", pinned, re.MULTILINE):
        found = versions.get(name, "not installed")
        if found not in ("not installed", pin) and found.partition("+")[0] != pin:
            yield Finding("warn", f"{name} {found}, but {pins.name} pins {pin}")


def attention(
    device: torch.device, shapes: Sequence[Shape], operator: str, *, bf16: bool
) -> Iterator[Finding]:
    """The networks' attention, forward and backward, against plain float32 mathematics.

    Args:
        operator: the recipe's compute.attention.

    Raises:
        UserError: it does not run here.
    """
    precision = "bf16" if bf16 else "fp32"
    if not shapes:
        yield Finding("ok", "these networks have none")
    for channels, heads, width in shapes:
        torch.manual_seed(0)
        layer = Attention(channels, width, heads=heads, dim_head=channels // heads).to(device)
        layer.set_processor(processor(operator, [channels // heads], device, bf16=bf16))
        x = torch.randn(2, _QUERIES, channels, device=device)
        text = torch.randn(2, _TOKENS, width, device=device)
        with _Kernels() as seen:
            used = _forward_and_backward(layer, x, text, bf16)
        layer.set_processor(AttnProcessor())
        plain = _forward_and_backward(layer, x, text, False)
        error = max(_error(a, b) for a, b in zip(used, plain, strict=True))
        what = f"{seen.attention}, {heads} heads of {channels // heads}, {precision}, {device.type}"
        if error <= _TOLERANCE[bf16]:
            yield Finding("ok", f"{what}: as plain mathematics")
        else:
            yield Finding(
                "fail",
                f"{what}: {error:.2g} off plain mathematics, {_TOLERANCE[bf16]:g} allowed; "
                "install the pinned torch and its driver",
            )


def _forward_and_backward(layer: Attention, x: Tensor, text: Tensor, bf16: bool) -> list[Tensor]:
    """Output, and gradients of input and weights."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        out = layer(x, encoder_hidden_states=text)
    wanted = [x, *layer.parameters()]
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), wanted)]


def _error(a: Tensor, b: Tensor) -> float:
    """Of ``a``, relative to the greatest value; infinite if it is not a number."""
    error = float((a.float() - b).abs().max() / b.abs().max())
    return error if error == error else float("inf")


class _Kernels(TorchDispatchMode):
    """Notes which kernel torch's attention chooses; its own plain one consists of other kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = "attention by parts"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if "attention" in name and "backward" not in name:
            self.attention = name.strip("_")
        return func(*args, **(kwargs or {}))
