"""The rules of `data_prep filter`: read from YAML, and applied to batches of rows."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.blocklist import Blocklist
from data_prep.coyo import COLUMNS
from stack.util.errors import UserError

DEFAULTS = Path(__file__).with_name("rules.yaml")

MADE = {"min_side": ("width", "height"), "aspect": ("width", "height")}
"""Values that are made of several columns."""
VALUES = (*(name for name in COLUMNS if COLUMNS[name] != pa.string() and name != "id"), *MADE)

AESTHETIC, _FEW = "aesthetic_score_laion_v2", 6.0
DUPLICATE = {"url": "duplicate_url", "image_phash": "duplicate_phash"}
_UNIQUE = "unique"


class Bound(BaseModel):
    """What one value must be: within limits, or not among the lowest of the rows that are left."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    min: float | None = None
    max: float | None = None
    below: float | None = None
    drop_lowest: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _says_something(self) -> Bound:
        limits = self.model_dump(exclude_none=True)
        if not limits:
            raise ValueError("give min, max, below or drop_lowest")
        if "drop_lowest" in limits and len(limits) > 1:
            raise ValueError("drop_lowest stands alone; min and the like need a rule of their own")
        high = min(limits.get(name, float("inf")) for name in ("max", "below"))
        if "min" in limits and limits["min"] > high:
            raise ValueError(f"min {limits['min']:g} is above {high:g}; no row could pass")
        return self

    def keeps(self, values: np.ndarray) -> np.ndarray:
        """Which values are within the limits; NaN is not."""
        keep = ~np.isnan(values)
        if self.min is not None:
            keep &= values >= self.min
        if self.max is not None:
            keep &= values <= self.max
        if self.below is not None:
            keep &= values < self.below
        return keep


class Rules(BaseModel):
    """All rules of a run, in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bounds: dict[str, Bound]
    unique: tuple[Literal["url", "image_phash"], ...] = ()

    @classmethod
    def read(cls, path: Path | None = None) -> Rules:
        """Read a YAML file; without one, the defaults.

        Raises:
            UserError: not readable, an unknown rule, or a bad value.
        """
        path = DEFAULTS if path is None else path
        raw = _mapping(path)
        for name in raw:
            if name not in (*VALUES, _UNIQUE):
                near = difflib.get_close_matches(str(name), [*VALUES, _UNIQUE], 1)
                remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(VALUES)}"
                raise UserError(f"{path}: {name}: unknown rule; {remedy}")
        unique = raw.pop(_UNIQUE, [])
        try:
            rules = cls.model_validate({"bounds": raw, _UNIQUE: unique})
        except ValidationError as error:
            raise UserError(f"{path}: {_explain(error)}") from None
        if sum(bound.drop_lowest is not None for bound in rules.bounds.values()) > 1:
            raise UserError(f"{path}: drop_lowest: given for two values; give it for one")
        low = rules.bounds.get(AESTHETIC)
        if low is not None and low.min is not None and low.min >= _FEW:
            logging.getLogger(__name__).warning(
                "%s: %s: min %g leaves few rows: 6.25, which others use on LAION, leaves about "
                "1 million of COYO's 747 million",
                path, AESTHETIC, low.min,
            )  # fmt: skip
        return rules

    def resolved(self) -> dict[str, Any]:
        """The rules as the YAML file has them, as plain values."""
        bounds = {name: bound.model_dump(exclude_none=True) for name, bound in self.bounds.items()}
        return {**bounds, _UNIQUE: list(self.unique)}

    @property
    def ranked(self) -> tuple[str, float] | None:
        """The value of which the lowest are dropped, and their share."""
        for name, bound in self.bounds.items():
            if bound.drop_lowest is not None:
                return name, bound.drop_lowest
        return None

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns in which no value may come twice, in the order in which that is checked."""
        return tuple(name for name in DUPLICATE if name in self.unique)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the rules need."""
        values = [column for name in self.bounds for column in MADE.get(name, (name,))]
        return tuple(dict.fromkeys(("url", "text", *values, *self.keys)))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which rows are counted, in the order in which they are dropped."""
        limits = (name for name, bound in self.bounds.items() if bound.drop_lowest is None)
        first = ("blocked", *(_MISSING[column] for column in self._present), *limits)
        ranked = (self.ranked[0],) if self.ranked else ()
        return (*first, *ranked, *(DUPLICATE[column] for column in self.keys))

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in _MISSING if name != "image_phash" or name in self.unique)

    def checks(self, batch: pa.RecordBatch, blocked: Blocklist) -> Iterator[tuple[str, np.ndarray]]:
        """The rules that look at each row alone: name, and which rows pass."""
        yield "blocked", ~blocked.mask(batch)
        for column in self._present:
            yield _MISSING[column], _filled(batch.column(column))
        for name, bound in self.bounds.items():
            if bound.drop_lowest is None:
                yield name, bound.keeps(values_of(batch, name))


_MISSING = {"url": "no_url", "text": "no_text", "image_phash": "no_phash"}


def values_of(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column, or a value made of several, as float64; NaN where it is missing."""
    if name not in MADE:
        return _floats(batch.column(name))
    sides = [_floats(batch.column(column)) for column in MADE[name]]
    small = np.minimum(*sides)
    if name == "min_side":
        return small
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(*sides) / small


def _floats(column: pa.Array) -> np.ndarray:
    numbers = column.cast(pa.float64(), safe=False)
    return numbers.to_numpy(zero_copy_only=False)


def _filled(column: pa.Array) -> np.ndarray:
    """Which texts hold more than white space."""
    blank = pc.or_(pc.utf8_is_space(column), pc.equal(pc.binary_length(column), 0))
    return pc.invert(pc.fill_null(blank, True)).to_numpy(zero_copy_only=False)


def _mapping(path: Path) -> dict[Any, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {DEFAULTS} shows what one holds") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a mapping of rules; {DEFAULTS} shows one")
    return raw


def _explain(error: ValidationError) -> str:
    """The field at fault, its value, and what it must be."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part != "bounds")
    value = first["input"]
    match first["type"]:
        case "extra_forbidden":
            return f"{field}: unknown; give {', '.join(Bound.model_fields)}"
        case "value_error":
            return f"{field}: {first['ctx']['error']}"
        case "model_type":
            return f"{field}: {value!r}: must be limits, such as {{min: 5}}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{field}: {value!r}: {message.removeprefix('input ')}"
