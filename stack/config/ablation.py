"""A plan of ``stack ablate``: recipe overrides times seeds, and what is compared."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from stack.config.sections import Count, Section
from stack.util.errors import UserError

Overrides = Annotated[list[str], Field(default_factory=list)]
Option = str | int | float | bool


class Variant(Section):
    """One value of an axis."""

    recipe: str | None = None
    """Another recipe than the plan's, relative to the plan's file."""
    set: Overrides
    """Overrides of recipe fields."""


class Plan(Section):
    """A matrix of distillations: every combination of the axes' values, with every seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the plan."""
    recipe: str
    """Recipe of all runs, relative to the plan's file."""
    out: str = ""
    """Folder of the runs and tables; runs/<name> if unset."""
    seeds: list[Count] = Field(min_length=1)
    """Of the runs; paired across cells."""
    set: Overrides
    """Overrides in all runs; an axis' own come after these."""
    axes: dict[str, dict[str, Variant]] = Field(min_length=1)
    """Axis -> value -> overrides (a list), or recipe and overrides."""
    baseline: list[dict[str, str]]
    """What a cell is compared with: itself with these values of these axes. Several, as a list,
    are compared with one by one."""
    evaluate: dict[str, Option] | None = Field(default_factory=dict)
    """Options of stack evaluate, such as samples: 5000; null: do not evaluate."""
    metrics: dict[str, str] = Field(min_length=1)
    """Title -> where it is: a dotted name in evaluation.json (student.frechet_distance), or
    log:NAME, the last value of a logged figure."""
    compare: Literal["ratio", "difference"] = "ratio"
    """How a cell is compared with its baseline, seed by seed."""
    interval: Literal["t", "bootstrap"] = "t"
    """95 % over seeds: Student's t (of the logarithms, for ratios), or percentiles of resamples."""

    @field_validator("axes", mode="before")
    @classmethod
    def _lists(cls, axes: object) -> object:
        """A value may be its list of overrides."""
        if not isinstance(axes, dict):
            return axes
        return {
            axis: {
                name: {"set": value} if isinstance(value, list) else value
                for name, value in values.items()
            }
            if isinstance(values, dict)
            else values
            for axis, values in axes.items()
        }

    @field_validator("baseline", mode="before")
    @classmethod
    def _one(cls, baseline: object) -> object:
        """One baseline need not be a list; an empty one is none."""
        return [baseline] * bool(baseline) if isinstance(baseline, dict) else baseline

    @model_validator(mode="after")
    def _whole(self) -> Plan:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has one twice")
        for axis, value in (pair for baseline in self.baseline for pair in baseline.items()):
            if axis not in self.axes:
                raise ValueError(f"baseline: {axis}: not an axis ({', '.join(self.axes)})")
            if value not in self.axes[axis]:
                raise ValueError(
                    f"baseline: {axis}: {value}: not a value of it ({', '.join(self.axes[axis])})"
                )
        if any(not baseline or self.baseline.count(baseline) > 1 for baseline in self.baseline):
            raise ValueError(f"baseline: {self.baseline} has one twice, or an empty one")
        slugs = [slug(cell) for cell in self.cells()]
        twice = {name for name in slugs if slugs.count(name) > 1}
        if twice:
            raise ValueError(f"axes: two cells would be in {min(twice)}; rename a value")
        return self

    def cells(self) -> list[tuple[str, ...]]:
        """Every combination of one value per axis, in the file's order."""
        return list(product(*self.axes.values()))

    def bases_of(self, cell: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The cells that one is compared with, baseline by baseline; itself, where it is one."""
        values = list(zip(self.axes, cell, strict=True))
        return [
            tuple(baseline.get(axis, value) for axis, value in values) for baseline in self.baseline
        ]

    def variants(self, cell: tuple[str, ...]) -> list[Variant]:
        """What sets a cell apart, axis by axis."""
        return [self.axes[axis][value] for axis, value in zip(self.axes, cell, strict=True)]


def slug(cell: tuple[str, ...]) -> str:
    """A cell as a part of a folder's name."""
    return "-".join(re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_") for value in cell)


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: unreadable, an unknown or ill-typed field; names file, field and remedy.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such plan; see recipes/ablations/ for some") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a mapping of fields to values")
    if not raw.get("out") and isinstance(raw.get("name"), str):
        raw["out"] = f"runs/{raw['name']}"
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {field}: {message}" if field else f"{path}: {message}") from None
