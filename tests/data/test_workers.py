"""Loader processes that are lost, and that outlive nothing."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from itertools import islice

import pytest

from stack.data.batch import BatchLoader
from stack.data.stream import ShardStream
from stack.util.errors import UserError

OPTIONS = {"global_batch": 16, "lanes": 8, "seed": 3, "window": 6}


def test_a_killed_worker_is_one_line(folder):
    """What it had sent by then is still had, one or two batches; then its loss is told."""
    others = multiprocessing.active_children()
    batches = iter(BatchLoader(ShardStream(folder, **OPTIONS), ("cls",), workers=1, prefetch=1))
    next(batches)
    [worker] = [child for child in multiprocessing.active_children() if child not in others]
    worker.kill()
    worker.join()
    with pytest.raises(UserError, match=r"data\.workers: a loader process is gone") as caught:
        list(islice(batches, 3))
    assert "\n" not in str(caught.value)


ENDS = """
from stack.data.batch import BatchLoader
from stack.data.stream import ShardStream

stream = ShardStream({folder!r}, **{options})
batches = iter(BatchLoader(stream, ("cls",), workers=2))
next(batches)
raise RuntimeError("a bug")
"""


@pytest.mark.slow
def test_a_process_that_fails_does_not_wait_for_its_workers(folder):
    """They ignore SIGTERM, which is all that multiprocessing sends before it waits for them."""
    script = ENDS.format(folder=str(folder), options=OPTIONS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(b"RuntimeError: a bug")
