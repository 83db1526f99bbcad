"""What tests of the whole share."""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # As the command line does; read when imported.

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums in the same order on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A tiny teacher and its data, made once; never changed by a test."""
    from tests.pipeline import make_world

    return make_world(tmp_path_factory.mktemp("world"))
