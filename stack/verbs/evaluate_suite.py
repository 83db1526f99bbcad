"""``stack evaluate --suite``: models through a suite of prompts or classes, on any number of ranks.

Blocks of 32 prompts are made by whichever rank has them, and what is made is not made again: an
evaluation that was cut off goes on where it was. The first rank then takes the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from stack.config.evaluation import Evaluation
from stack.evaluate.bootstrap import FEW, Estimate
from stack.evaluate.measure import DISTANCES, Plan, figures, run_blocks, speed
from stack.evaluate.reference import Reference
from stack.parallel.collectives import Ranks
from stack.report.published import rows as published_rows
from stack.train.build import device_of
from stack.train.build_models import Kind, Model, models_of_folder, models_of_run
from stack.train.build_suite import (
    Opened,
    choose_measures,
    open_suite,
    plan_of,
    real_of,
)
from stack.train.build_tools import tools_of
from stack.util.files import write_json
from stack.util.progress import progress

log = logging.getLogger(__name__)

PATIENCE = 6 * 3600.0
"""Seconds that ranks wait for each other: one may have found all its blocks made."""
_BATCH = 32
"""Pictures made at once by a model that no recipe says a number for."""


@dataclass(frozen=True)
class Options:
    """The command line. Unset fields are the recipe's or the suite's.

    Args:
        target: run folder, pipeline folder, EDM network's folder or hub id.
        out: where results and blocks go. prompts, reference, networks: where parts lie.
    """

    target: str
    suite: str
    out: Path
    seed: int = 0
    subset: int | None = None
    teachers: tuple[str, ...] = ("ode",)
    steps: int | None = None
    guidance: float | None = None
    batch: int | None = None
    resolution: int | None = None
    measures: tuple[str, ...] = ()
    revision: str | None = None
    device: str = "auto"
    bf16: bool = False
    prompts: str | None = None
    reference: str | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
    json_file: Path | None = None

    @property
    def is_run(self) -> bool:
        """Whether the target is a run's folder."""
        return (Path(self.target) / "recipe.yaml").is_file()


def evaluate_suite(options: Options, wanted: Evaluation, device: str, ranks: Ranks) -> None:
    """Measure, print the table and write OUT/SUITE.json, and of a run RUN/evaluation.json.

    Args:
        wanted: the recipe's section; the defaults for a folder. device: a recipe's, or ``auto``.
    """
    opened = open_suite(
        options.suite,
        wanted,
        prompts=options.prompts,
        real=options.reference,
        networks=options.networks,
    )
    measures = choose_measures(opened.suite, options.measures)
    batch = options.batch or (wanted.batch if options.is_run else _BATCH)
    plan = plan_of(
        opened,
        tools_of(opened.networks, opened.suite, measures, device_of(device)),
        seed=options.seed,
        batch=batch,
        subset=options.subset,
        resolution=options.resolution,
        measures=measures,
    )
    real = _reference(opened, plan, options.out, ranks)
    models = _models(options)
    results = {}
    for model in models:
        total = -(-len(plan.prompts) * plan.per_prompt // ranks.world_size)
        with progress(f"evaluate {model.name}", total=total) as bar:
            store = run_blocks(
                model.sampler,
                plan,
                options.out / "blocks",
                model.facts,
                rank=ranks.rank,
                world_size=ranks.world_size,
                on_pictures=bar.advance,
            )
        ranks.barrier()
        if ranks.first:
            found = figures(store.read(), plan, real, device_of(device))
            results[model.name] = _row(model, plan, found)
    if ranks.first:
        result = _result(options, opened, plan, models, results, real, ranks)
        _write(options, opened, result)
        _print(options, opened, result)


def _reference(opened: Opened, plan: Plan, out: Path, ranks: Ranks) -> Reference | None:
    """The real pictures' statistics, where a measure needs them; the first rank makes them."""
    if not DISTANCES & {*plan.measures}:
        return None
    found: list[Reference] = []

    def read() -> None:
        real = real_of(opened, plan, out / "references")
        found.append(real.read(lambda count: progress("real pictures", total=count)))

    ranks.by_first(read)
    return found[0] if found else None


def _models(options: Options) -> list[Model]:
    kinds = cast(Sequence[Kind], options.teachers)
    settings: dict[str, Any] = {"steps": options.steps, "guidance": options.guidance}
    if options.is_run:
        return models_of_run(Path(options.target), kinds, **settings)[1]
    return models_of_folder(
        options.target,
        options.revision,
        kinds,
        **settings,
        device=device_of(options.device),
        bf16=options.bf16,
    )


def _row(model: Model, plan: Plan, found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Plain figures, with their intervals beside them."""
    return {
        "sampler": model.told,
        **speed(model.sampler, plan),
        **{name: estimate.value for name, estimate in found.items()},
        "intervals": {name: estimate.as_json() for name, estimate in found.items()},
    }


def _result(
    options: Options,
    opened: Opened,
    plan: Plan,
    models: Sequence[Model],
    results: Mapping[str, dict[str, Any]],
    real: Reference | None,
    ranks: Ranks,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "suite": opened.name,
        **results,
        "samples": len(plan.prompts) * plan.per_prompt,
        "prompts": len(plan.prompts),
        "per_prompt": plan.per_prompt,
        "seed": plan.seed,
        "resolution": plan.resolution,
        "networks": {
            use: {"name": name, "fingerprint": plan.tools.fingerprints()[use]}
            for use, name in plan.tools.names().items()
        },
        "target": options.target,
        "processes": ranks.world_size,
        "device": next(iter(results.values()))["device"],
    }
    teacher, student = results.get("teacher"), results.get("student")
    if teacher:
        result["teacher_sampler"] = models[0].told
    if teacher and student:
        result["speedup"] = student["images_per_second"] / teacher["images_per_second"]
    if real:
        result["reference"] = {"count": real.count} | real.facts
    if plan.tools.classifier:
        result["classifier"] = asdict(plan.tools.classifier.training)
    return result


def _write(options: Options, opened: Opened, result: Mapping[str, Any]) -> None:
    run = Path(options.target) / "evaluation.json" if options.is_run else None
    for file in (options.out / f"{opened.name}.json", run, options.json_file):
        if file:
            write_json(file, result)


def _print(options: Options, opened: Opened, result: Mapping[str, Any]) -> None:
    names = [name for name, row in result.items() if isinstance(row, dict) and "intervals" in row]
    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    keys = dict.fromkeys(key for name in names for key in result[name]["intervals"])
    for key in ("nfe", "latency_seconds", "images_per_second"):
        table.add_row(key, *(f"{result[name][key]:.3g}" for name in names))
    for key in keys:
        table.add_row(key, *(_cell(result[name]["intervals"].get(key)) for name in names))
    console = Console(highlight=False)
    told = f"{opened.name}, {result['samples']} samples, seed {result['seed']}"
    console.print(f"{options.target}: {told}", soft_wrap=True)
    console.print(table)
    console.print("brackets: 95% bootstrap intervals, and of how many samples or prompts")
    for dataset in opened.suite.published:
        for row in published_rows(dataset):
            if row.kind != "other":
                told = ", ".join(f"{name} {value:g}" for name, value in row.metrics.items())
                console.print(f"published, {row.method} ({row.hint}): {told}", soft_wrap=True)
    few = [key for key in keys if any(result[n]["intervals"][key]["few_samples"] for n in names)]
    if few:
        log.warning(
            "fewer than %d samples behind %s: for a quick look, not to be compared with published "
            "figures",
            FEW,
            ", ".join(few),
        )


def _cell(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return "-"
    low, high, samples = interval["low"], interval["high"], interval["samples"]
    return f"{interval['value']:.4g} [{low:.4g}, {high:.4g}; {samples}]"
