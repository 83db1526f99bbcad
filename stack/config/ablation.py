"""A plan of ``stack ablate``: recipe overrides times seeds, and what is compared."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from stack.config.evaluation import Measure
from stack.config.sections import Count, Positive, Section
from stack.util.errors import UserError

Overrides = Annotated[list[str], Field(default_factory=list)]
Comparison = Literal["ratio", "difference"]
Measured = Literal[Measure, "caption_accuracy", "mode_tv"]

_LOGGED = re.compile(r"log:([^@\s]+)(?:@(0?\.\d*[1-9]\d*|1(?:\.0*)?))?")
_MODELS = ("student", "teacher")
_OF_A_MODEL = (
    *get_args(Measured),
    *("nfe", "latency_seconds", "images_per_second", "intervals"),
)
"""In evaluation.json, of student and teacher; hps_STYLE too."""
_OF_ALL = ("speedup", "real_halves_frechet_distance", "judge", "classifier", "reference")
"""In evaluation.json, besides the models."""


def _measure_of(figure: str) -> str | None:
    """What `--measure` calls a model's figure, or one of its interval; None of what always is."""
    name = figure.removeprefix("intervals.").partition(".")[0]
    if name.startswith("hps_"):
        return "hps_score"
    return name if name in get_args(Measured) else None


class Variant(Section):
    """One value of an axis."""

    recipe: str | None = None
    """Another recipe than the plan's, relative to the plan's file."""
    set: Overrides
    """Overrides of recipe fields."""


class Evaluated(Section):
    """Options of ``stack evaluate``, which says what they are; what is unset is as there."""

    suite: str | None = None
    subset: Positive | None = None
    samples: Positive | None = None
    seed: int | None = None
    teacher: Literal["ode", "sde", "none"] | None = None
    steps: Positive | None = None
    guidance: float | None = None
    batch: Positive | None = None
    revision: str | None = None
    device: str | None = None
    bf16: bool | None = None
    prompts: str | None = None
    reference: str | None = None
    resolution: Positive | None = None
    measure: Measured | None = None
    inception: str | None = None
    clip: str | None = None
    dino: str | None = None
    hps: str | None = None
    hps_tokenizer: str | None = None
    classifier: str | None = None
    out: str | None = None
    processes: Positive | None = None


class Metric(Section):
    """One figure of the tables."""

    at: str
    """Where it is: a dotted name in evaluation.json (student.frechet_distance); log:NAME, the last
    value of a logged figure; or log:NAME@SHARE, its mean over that share of its logged rows at the
    end (log:loss/gap@0.25: the last quarter)."""
    compare: Comparison | None = None
    """How it is compared with a baseline's; the plan's if unset. A difference for what can be 0."""

    @property
    def logged(self) -> tuple[str, float | None] | None:
        """Name in the log, and the share of rows or None; None where it is in evaluation.json."""
        found = _LOGGED.fullmatch(self.at)
        return (found[1], float(found[2]) if found[2] else None) if found else None

    @field_validator("at")
    @classmethod
    def _form(cls, at: str) -> str:
        if at.startswith("log:"):
            found = _LOGGED.fullmatch(at)
            if not found:
                raise ValueError(f"{at}: must be log:NAME, or log:NAME@SHARE with 0 < SHARE <= 1")
            if found[1].startswith("levels/"):
                raise ValueError(f"{at}: a table, not a number; name another logged figure")
            return at
        model, _, figure = at.partition(".")
        name = figure.partition(".")[0]
        if model not in _MODELS:
            _known(at, model, (*_MODELS, *_OF_ALL))
        elif not name.startswith("hps_"):
            _known(at, name, _OF_A_MODEL)
        return at


def _known(at: str, part: str, names: Iterable[str]) -> None:
    names = tuple(names)
    if part not in names:
        near = difflib.get_close_matches(part, names, 1)
        remedy = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(names)}"
        raise ValueError(f"{at}: {part!r} is not in an evaluation.json; {remedy}")


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
    evaluate: Evaluated | None = Evaluated()
    """Options of stack evaluate, such as samples: 5000; null: do not evaluate."""
    metrics: dict[str, Metric] = Field(min_length=1)
    """Title -> where it is (student.frechet_distance, log:NAME, log:NAME@SHARE), or a mapping of
    that (at) and of how it is compared (compare)."""
    compare: Comparison = "ratio"
    """How a cell is compared with its baseline, seed by seed, unless a metric says otherwise."""
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

    @field_validator("evaluate", mode="before")
    @classmethod
    def _dashes(cls, options: object) -> object:
        """Names may be written as on the command line."""
        if not isinstance(options, dict):
            return options
        return {str(name).replace("-", "_"): value for name, value in options.items()}

    @field_validator("metrics", mode="before")
    @classmethod
    def _places(cls, metrics: object) -> object:
        """A metric may be where it is."""
        if not isinstance(metrics, dict):
            return metrics
        return {
            title: {"at": metric} if isinstance(metric, str) else metric
            for title, metric in metrics.items()
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

    @model_validator(mode="after")
    def _there(self) -> Plan:
        """What is looked at is made."""
        for title, metric in self.metrics.items():
            if metric.logged:
                continue
            if self.evaluate is None:
                raise ValueError(f"metrics: {title}: {metric.at}: evaluate is null; set options")
            model, _, figure = metric.at.partition(".")
            if model in ("teacher", "speedup") and self.evaluate.teacher == "none":
                raise ValueError(
                    f"metrics: {title}: {metric.at}: needs the teacher; evaluate.teacher is none"
                )
            only = self.evaluate.measure
            if only and _measure_of(figure) not in (None, only):
                raise ValueError(
                    f"metrics: {title}: {metric.at}: is not measured; evaluate.measure is {only}"
                )
        return self

    @property
    def options(self) -> dict[str, Any] | None:
        """Of stack evaluate, as given; None: do not evaluate."""
        return self.evaluate.model_dump(exclude_none=True) if self.evaluate else None

    def compared(self) -> dict[str, Comparison]:
        """How each metric is."""
        return {title: metric.compare or self.compare for title, metric in self.metrics.items()}

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
        raise UserError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first field at fault, what is wrong with it, and what it was."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return f"{field}: {first['ctx']['error']}" if field else str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        if field.startswith("evaluate."):
            known, told = Evaluated.model_fields, "not an option of stack evaluate"
        else:
            known, told = Plan.model_fields, "unknown field"
        near = difflib.get_close_matches(field.rpartition(".")[2], known, 1)
        return f"{field}: {told}; {f'did you mean {near[0]}?' if near else 'take it out'}"
    return f"{field}: {first['msg'][0].lower()}{first['msg'][1:]} (got {first['input']!r})"
