"""Libraries say nothing of their installation, and warnings of use get through."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.forked import ROOT

PROGRAM = """
import logging
from stack.util.quiet import quiet_libraries
quiet_libraries()
import diffusers, torchao.optim
from diffusers import UNet2DConditionModel
logging.getLogger("torch.utils._pytree").warning("of a tree")
logging.getLogger("torchao").error("of an optimizer")
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao is not installed")
def test_what_torchao_lacks_on_this_machine_is_not_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "of a tree" in lines[0]
    assert "of an optimizer" in lines[1]
