"""Composition of an evaluation: a suite with its prompts, real pictures and networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stack.config.evaluation import Evaluation, Networks, SuiteFile
from stack.config.schema import AnyRecipe, DistillRecipe
from stack.config.sections import Data
from stack.data.index import MANIFEST
from stack.data.storage import expand_variables, is_url
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.measure import Plan, Tools
from stack.evaluate.prompts import read_prompts
from stack.evaluate.reference import (
    Reference,
    Source,
    folder_source,
    load_foreign,
    load_reference,
    reference,
    shards_source,
)
from stack.evaluate.stored import digest_of
from stack.evaluate.suites import CLASSES_BLOCK, SUITES, Suite
from stack.train.build import cache_of
from stack.util.errors import UserError
from stack.util.progress import Bar

_REFERENCE, _FOREIGN = ".safetensors", ".npz"
_NO_SUITE = "not a suite (docs/evaluation.md); captions go to --prompts"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A suite with where its parts lie.

    Args:
        prompts: captions file, None for a suite of classes or where nobody named one.
        real: real pictures, in the same way.
    """

    name: str
    suite: Suite
    prompts: str | None
    real: str | None
    networks: Networks


def open_suite(
    named: str,
    wanted: Evaluation,
    *,
    prompts: str | None = None,
    real: str | None = None,
    networks: Mapping[str, str] | None = None,
) -> Opened:
    """A suite by its name or file, with what the recipe and, above that, the command line say of
    where its parts lie.

    Raises:
        UserError: no such suite, or its file is not one.
    """
    given = {name: value for name, value in (networks or {}).items() if value}
    if suite := SUITES.get(named):
        return Opened(
            named,
            suite,
            prompts or wanted.prompts.get(named),
            real or wanted.references.get(named),
            wanted.networks.model_copy(update=given),
        )
    if not Path(named).is_file():
        known = ", ".join(SUITES)
        raise UserError(f"suite: {named}: neither one of {known} nor a file (docs/evaluation.md)")
    told = _read_suite(Path(named))
    theirs = told.networks.model_dump(exclude_unset=True)
    suite = Suite(
        source="" if told.classes else "the user",
        prompts=told.count or (50_000 if told.classes else None),
        measures=tuple(told.measures),
        per_prompt=told.per_prompt,
        resolution=told.resolution,
        real="the user",
        classes=told.classes,
        block=CLASSES_BLOCK if told.classes else Suite.block,
    )
    merged = wanted.networks.model_copy(update=theirs | given)
    return Opened(told.name, suite, prompts or told.prompts, real or told.reference, merged)


def plan_of(
    opened: Opened,
    tools: Tools,
    *,
    seed: int,
    batch: int,
    subset: int | None = None,
    resolution: int | None = None,
    measures: tuple[str, ...] = (),
) -> Plan:
    """What is drawn and looked at.

    Raises:
        UserError: no captions file, or it lacks captions.
    """
    suite, captions = opened.suite, None
    if not suite.classes:
        if not opened.prompts:
            raise UserError(
                f"--prompts: missing: the captions of {opened.name}, from {suite.source}; or set "
                f"evaluation.prompts.{opened.name}"
            )
        captions = read_prompts(expand_variables(opened.prompts))
    return Plan(
        suite.conditions(captions, subset, seed),
        measures or suite.measures,
        tools,
        seed,
        per_prompt=suite.per_prompt,
        resolution=resolution or suite.resolution,
        block=suite.block,
        batch=min(batch, suite.block),
    )


def choose_measures(suite: Suite, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a suite that are asked for; all if none is.

    Raises:
        UserError: one that the suite has not.
    """
    for name in chosen:
        if name not in suite.measures and not (name == "class_accuracy" and suite.classes):
            raise UserError(f"--measure: {name}: the suite has {', '.join(suite.measures)}")
    return chosen or suite.measures


def networks_of(recipe: AnyRecipe) -> list[tuple[str, str]]:
    """Field and path, or place in the hub, of every network that a recipe's evaluations look
    through, those of its suites' files included."""
    if not isinstance(recipe, DistillRecipe):
        return []
    wanted = recipe.evaluation
    named = [wanted.networks]
    for suite in (wanted.suite, *[wanted.quick_suite] * bool(wanted.quick_every)):
        named.append(open_suite(suite, wanted).networks)
    rows = (item for networks in named for item in networks.model_dump().items())
    return list(dict.fromkeys((name, told) for name, told in rows if told and name != "resize"))


@dataclass(frozen=True)
class Real:
    """Where real pictures are and what of them is wanted."""

    opened: Opened
    extractor: KnownExtractor
    resolution: int | None
    folder: Path
    features: bool

    def read(self, watch: Callable[[int], AbstractContextManager[Bar]]) -> Reference:
        """Their statistics, made first where there are none yet.

        Args:
            watch: from the number of pictures to what their progress is shown on.

        Raises:
            UserError: no real pictures are named or there, or the statistics are of others.
        """
        if not self.opened.real:
            raise UserError(
                f"--reference: missing: the real pictures of {self.opened.name}, from "
                f"{self.opened.suite.real}; or set evaluation.references.{self.opened.name}"
            )
        told = expand_variables(self.opened.real)
        if told.endswith(_REFERENCE):
            return self._checked(told, load_reference(told, self.extractor))
        if told.endswith(_FOREIGN):
            log.warning(
                "%s: nothing tells whether its statistics are of %s", told, self.extractor.name
            )
            return self._with_features(told, load_foreign(told, self.extractor))
        source = _source(told)
        facts: dict[str, Any] = {
            "extractor": self.extractor.fingerprint,
            "source": source.fingerprint,
            "resolution": self.resolution,
        }
        path = self.folder / f"{self.opened.name}-{digest_of(facts)[:12]}{_REFERENCE}"
        with watch(source.count) as bar:
            return reference(
                source,
                self.extractor,
                path,
                resolution=self.resolution,
                features=self.features,
                on_pictures=bar.advance,
            )

    def _checked(self, file: str, found: Reference) -> Reference:
        """Statistics from a file, if they are such as are wanted."""
        if (side := found.facts["resolution"]) != self.resolution:
            raise UserError(
                f"{file}: resolution: of pictures of {side or 'their own size'}, not of "
                f"{self.resolution or 'their own size'}; see --resolution, or make it anew"
            )
        return self._with_features(file, found)

    def _with_features(self, file: str, found: Reference) -> Reference:
        """The same, if the features are there or not needed."""
        if self.features and found.features is None:
            raise UserError(
                f"{file}: features: not kept, and recall and precision need them; take --measure "
                "frechet_distance alone, or make it anew"
            )
        return found


def _source(told: str) -> Source:
    """Pictures of a folder, or of shards."""
    if is_url(told) or (Path(told) / MANIFEST).is_file():
        return shards_source([told], cache_of(Data(folders=[told], global_batch=1)))
    return folder_source(told)


def real_of(opened: Opened, plan: Plan, folder: Path) -> Real:
    """The real pictures of a plan that has distances; their statistics are kept in a folder."""
    assert plan.tools.distance
    features = bool({"recall", "precision"} & {*plan.measures})
    return Real(opened, plan.tools.distance, plan.resolution, folder, features)


def _read_suite(path: Path) -> SuiteFile:
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason}); {_NO_SUITE}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {_NO_SUITE}")
    try:
        told = SuiteFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {place + ': ' if place else ''}{reason}") from None
    here = path.parent
    networks = {
        name: _beside(here, value) if name != "resize" else value
        for name, value in told.networks.model_dump(exclude_unset=True).items()
    }
    return told.model_copy(
        update={
            "prompts": _beside(here, told.prompts),
            "reference": _beside(here, told.reference),
            "networks": Networks.model_validate(networks),
        }
    )


def _beside(folder: Path, told: str | None) -> str | None:
    """A path relative to a file, unless it is a URL, of the hub, or begins with a variable."""
    if told is None or "@" in told or is_url(told) or told.startswith("$"):
        return told
    return str(folder / told)
