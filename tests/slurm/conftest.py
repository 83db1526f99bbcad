"""The cluster of a test process, which all its tests use, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.slurm.cluster import Cluster, cluster, missing, until
from tests.slurm.interpreter import forking


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    with cluster(tmp_path_factory.mktemp("slurm") / "root") as made:
        yield made


@pytest.fixture
def slurm(_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster without jobs, all of whose nodes are free."""
    yield _cluster
    _cluster.clear()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment for jobs whose ranks start at once."""
    folder = tmp_path_factory.mktemp("forks")
    server = forked.start("tests.slurm.forks", folder / "socket")
    until((folder / "socket").exists, "a server of forks")
    yield forking(folder, folder / "socket")
    server.kill()
