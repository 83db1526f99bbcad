"""``stack evaluate``: models through a suite of prompts or classes, on any number of ranks.

Blocks of prompts are made by whichever rank has them, and what is made is not made again: an
evaluation that was cut off goes on where it was. The first rank then takes the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from stack.config.evaluation import Evaluation, Networks
from stack.config.schema import DistillRecipe
from stack.data.storage import expand_variables, is_url
from stack.evaluate import inception
from stack.evaluate.intervals import Estimate
from stack.evaluate.measure import DISTANCES, Plan, figures, run_blocks, speed
from stack.evaluate.reference import Reference
from stack.evaluate.suites import Suite
from stack.parallel.collectives import Ranks
from stack.train.build import device_of
from stack.train.build_labelled import labelled_plan, subject_of
from stack.train.build_models import Kind, Model, models_of_folder, models_of_run
from stack.train.build_suite import (
    Opened,
    choose_measures,
    open_suite,
    plan_of,
    real_of,
)
from stack.train.build_tools import place_of, tools_of
from stack.util.errors import UserError
from stack.util.files import read_json, write_json
from stack.util.progress import progress
from stack.verbs.evaluate_table import print_table
from stack.verbs.fetch_file import download

log = logging.getLogger(__name__)

PATIENCE = 6 * 3600.0
"""Seconds that ranks wait for each other: one may have found all its blocks made."""
_FEWEST = 10
"""Pictures, generated or real, that a distance or a neighbour needs."""
_Prepared = tuple[Plan, Reference | None, dict[str, Any]]
"""What is drawn, what it is compared with, and what else the result tells."""


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

    def part_of(self, suite: Suite, wanted: Evaluation) -> list[str]:
        """What makes the result another one than the whole suite's, for its name; empty where it
        is that. More samplers of the teacher than ODE's are no less than that one."""
        measures = sorted({*self.measures})
        everything = wanted.samples if suite.labelled else suite.prompts
        told = {
            f"subset{self.subset}": self.subset not in (None, everything),
            "-".join(measures): bool(measures) and {*measures} != {*suite.measures},
            "-".join(self.teachers) or "no-teacher": "ode" not in self.teachers,
            f"seed{self.seed}": self.seed != 0,
            f"resolution{self.resolution}": self.resolution not in (None, suite.resolution),
        }
        return [name for name, differs in told.items() if differs]


def evaluate_suite(options: Options, wanted: Evaluation, device: str, ranks: Ranks) -> None:
    """Measure, print the table and write OUT/SUITE.json, and of a run RUN/evaluation.json; a part
    of a suite has a name of its own, and does not replace a whole one's RUN/evaluation.json.

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
    recipe, models = _models(options)
    if "class_accuracy" in options.measures and any(one.sampler.classes == 0 for one in models):
        raise UserError("--measure: class_accuracy: the network has no classes")
    if opened.suite.labelled:
        plan, real, told = _labelled(options, opened, recipe, measures, ranks)
    else:
        plan, real, told = _named(options, opened, wanted, measures, device, ranks)
    results = {}
    for model in models:
        total = -(-len(plan.prompts) * plan.per_prompt // ranks.world_size)
        with progress(f"evaluate {model.name}", total=total) as bar:
            store = run_blocks(
                model.sampler,
                plan,
                options.out / "blocks",
                model.sampler.facts(),
                rank=ranks.rank,
                world_size=ranks.world_size,
                on_pictures=bar.advance,
            )
        ranks.barrier()
        timed = speed(model.sampler, plan) if ranks.first else {}
        ranks.barrier()  # Else the others would make the next model's pictures meanwhile.
        if ranks.first:
            found = figures(store.read(), plan, real, device_of(device))
            results[model.name] = _row(model, timed, found)
    if ranks.first:
        part = options.part_of(opened.suite, wanted)
        result = _result(options, opened, part, plan, models, results, real, ranks) | told
        files = _write(options, result)
        print_table(options.target, opened, result)
        print(f"results in {' and '.join(map(str, files))}")


def _named(
    options: Options,
    opened: Opened,
    wanted: Evaluation,
    measures: tuple[str, ...],
    device: str,
    ranks: Ranks,
) -> _Prepared:
    """A suite of prompts or classes, through networks of their own."""
    if DISTANCES & {*measures}:
        ranks.by_first(lambda: bring_inception(opened.networks))
    plan = plan_of(
        opened,
        tools_of(opened.networks, opened.suite, measures, device_of(device)),
        seed=options.seed,
        batch=options.batch or wanted.batch,
        subset=options.subset,
        resolution=options.resolution,
        measures=measures,
    )
    _check(plan)
    real = _reference(opened, plan, options.out, ranks)
    classifier = plan.tools.classifier
    return plan, real, {"classifier": asdict(classifier.training)} if classifier else {}


def _labelled(
    options: Options,
    opened: Opened,
    recipe: DistillRecipe | None,
    measures: tuple[str, ...],
    ranks: Ranks,
) -> _Prepared:
    """Captions of the run's data, whose attributes a judge names."""
    if recipe is None:
        raise UserError(f"--suite: {opened.name}: {options.target}: is for run folders")
    for name in sorted({*options.networks} - {"classifier"}):
        raise UserError(f"--{name}: {opened.name}: sees pictures through its judge (--classifier)")
    if options.resolution:
        raise UserError(f"--resolution: {opened.name}: its judge sees pictures of their own size")
    subject = subject_of(opened, recipe, Path(options.target), ranks)
    plan = labelled_plan(
        opened,
        subject,
        recipe,
        measures,
        seed=options.seed,
        batch=options.batch or recipe.evaluation.batch,
        subset=options.subset,
    )
    _check(plan)
    if not ranks.first:
        return plan, None, {}
    return plan, subject.reference(), subject.facts(options.seed)


def bring_inception(networks: Networks) -> None:
    """Download Inception's file where a URL names it, unless it is in the cache.

    Raises:
        UserError: no network, or a file with another checksum than the published one's.
    """
    url = expand_variables(networks.inception or "")
    if is_url(url):
        path = Path(place_of("inception", url))
        if not path.is_file():
            log.warning("downloading Inception-v3 to %s", path)
            download(url, path, inception.SHA256)


def _check(plan: Plan) -> None:
    count = len(plan.prompts) * plan.per_prompt
    if DISTANCES & {*plan.measures} and count < _FEWEST:
        raise UserError(f"--subset: {count} pictures: distances need at least {_FEWEST}")


def _reference(opened: Opened, plan: Plan, out: Path, ranks: Ranks) -> Reference | None:
    """The real pictures' statistics, where a measure needs them; the first rank makes them."""
    if not DISTANCES & {*plan.measures}:
        return None
    found: list[Reference] = []

    def read() -> None:
        real = real_of(opened, plan, out / "references")
        found.append(real.read(lambda count: progress("real pictures", total=count)))
        kept = found[0].features
        if kept is not None and len(kept) < _FEWEST:
            raise UserError(f"--reference: {len(kept)} pictures: at least {_FEWEST} are needed")

    ranks.by_first(read)
    return found[0] if found else None


def _models(options: Options) -> tuple[DistillRecipe | None, list[Model]]:
    """And the recipe, of a run."""
    kinds = cast(Sequence[Kind], options.teachers)
    settings: dict[str, Any] = {"steps": options.steps, "guidance": options.guidance}
    if options.is_run:
        return models_of_run(Path(options.target), kinds, **settings)
    return None, models_of_folder(
        options.target,
        options.revision,
        kinds,
        **settings,
        device=device_of(options.device),
        bf16=options.bf16,
    )


def _row(model: Model, timed: Mapping[str, Any], found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Plain figures, with their intervals beside them."""
    return {
        "sampler": model.sampler.told,
        **timed,
        **{name: estimate.value for name, estimate in found.items()},
        "intervals": {name: estimate.as_json() for name, estimate in found.items()},
    }


def _result(
    options: Options,
    opened: Opened,
    part: Sequence[str],
    plan: Plan,
    models: Sequence[Model],
    results: Mapping[str, dict[str, Any]],
    real: Reference | None,
    ranks: Ranks,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "suite": "-".join([opened.name, *part]),
        "suite_of": opened.name,
        "whole": not part,
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
        result["teacher_sampler"] = models[0].sampler.told
    if teacher and student:
        result["speedup"] = student["images_per_second"] / teacher["images_per_second"]
    if real:
        result["reference"] = {"count": real.count} | real.facts
    return result


def _write(options: Options, result: Mapping[str, Any]) -> list[Path]:
    """The files that hold the result now."""
    files = [options.out / f"{result['suite']}.json"]
    if options.is_run:
        newest = Path(options.target) / "evaluation.json"
        if result["whole"] or not (newest.exists() and read_json(newest).get("whole", True)):
            files.append(newest)
    if options.json_file:
        files.append(options.json_file)
    for file in files:
        write_json(file, result)
    return files
