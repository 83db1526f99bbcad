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
    # Of other people's files; what torch cannot read is an error all the same.
    warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
    # Of their sources, once, where a newer Python compiles them at first import.
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    # What they lack here; torchao is imported by diffusers wherever it is installed.
    for name in ("xformers", "bitsandbytes", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # torchao registers its enumerations with torch in the way of older versions.
    logging.getLogger("torch.utils._pytree").addFilter(_not_of_enums)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # Their bars for every small file drown ours, which are rich's.
    os.environ.setdefault("TQDM_DISABLE", "1")


def _not_of_enums(record: logging.LogRecord) -> bool:
    return "register_constant() on Enum" not in record.getMessage()
