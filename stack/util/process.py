"""What a process settles before it loads a library that computes."""

from __future__ import annotations

import ctypes
import os
import platform

SPINS = 20_000
"""Turns that a thread of OpenMP's waits awake for the others, a fraction of a millisecond, before
it sleeps: more than small operators take, so that on an idle machine nobody has to be woken.
libgomp's own number, 300,000, takes a core from whoever else computes on the machine, and then from
the very threads that are waited for."""
TOP_PAD = 1 << 26
"""Bytes that glibc asks the kernel for beyond what it needs, each time that it asks."""

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def settle() -> None:
    """Waiting threads that sleep soon, and freed tensors that stay at hand; what the user has set
    in the environment counts more. To be called before torch is imported: libgomp reads the
    environment when it is loaded, and hands it on to processes that this one starts."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    told = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if not told:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """glibc returns large blocks to the kernel, which fills each with zeros at the next step, page
    by page: up to a fifth of a training's time on a CPU (docs/cifar10.md). Other C libraries do as
    they like."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)
        libc.mallopt(_TOP_PAD, TOP_PAD)
