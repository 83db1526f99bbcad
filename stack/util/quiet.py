"""Libraries that talk only of the run, not of their installation."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Our own warnings only; to be called before any library is imported."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # A checkpoint of one process says so at every save.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    for name in ("xformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # Their bars for every small file drown ours, which are rich's.
    os.environ.setdefault("TQDM_DISABLE", "1")
