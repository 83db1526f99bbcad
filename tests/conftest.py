"""What tests of the whole share, and what none of them sees of another."""

from __future__ import annotations

# ruff: noqa: E402
import os

# As the command line does; read when they are imported.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

from stack.util.process import settle

settle()

import random
import re
import signal
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Of hypothesis: the same examples every time, however long one takes.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

# What a job, a launcher of ranks or a terminal says of itself is not the tests'.
_TOLD = re.compile("SLURM_.*|MASTER_.*|TORCHELASTIC_.*|.*RANK|.*WORLD_SIZE")
for _name in filter(_TOLD.fullmatch, [*os.environ]):
    del os.environ[_name]
os.environ["COLUMNS"] = "80"

THREADS = int(os.environ.get("F_DISTILL_TEST_THREADS", "1"))
_OF_OTHERS = re.compile(
    "PYTEST_CURRENT_TEST|_?TORCHINDUCTOR_.*|TRITON_.*|CUDA_.*|DS_.*|BNB_.*|KMP_.*|TF_.*|GRPC_.*"
    "|TOKENIZERS_.*|PYTORCH_NVML_.*"
)
"""Set by libraries, or for them, when they are imported."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One, unless the suite is to show that it passes with more."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def _judges() -> Iterator[None]:
    """Those that an evaluation trains are there to be used, not to be right."""
    from stack.evaluate import attributes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "train_judge", partial(attributes.train_judge, steps=25))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    _seed(pyfuncitem.nodeid)


def _seed(name: str) -> None:
    """What a test or a fixture draws without a seed of its own is the same whatever ran before."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # The CPU's: manual_seed asks every device.


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """A test leaves the process as it found it: the next one may be any other."""
    before = _state()
    yield
    after = _state()
    left = {key: (before.get(key), now) for key, now in after.items() if before.get(key) != now}
    left |= {key: (was, None) for key, was in before.items() if key not in after}
    assert not left, "name: (before, after)"


def _state() -> dict[str, object]:
    os.umask(umask := os.umask(0o22))
    return {
        **{f"${n}": value for n, value in os.environ.items() if not _OF_OTHERS.fullmatch(n)},
        **{number.name: signal.getsignal(number) for number in _SIGNALS},
        "umask": umask,
        "working directory": Path.cwd(),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "products of float32": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "process group": torch.distributed.is_initialized(),
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A tiny teacher and its data, made once; never changed by a test."""
    from tests.pipeline import make_world

    return make_world(tmp_path_factory.mktemp("world"))
