"""Composition of the networks that metrics look through, from where a recipe or a command line
says that they lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from stack.config.evaluation import Networks
from stack.data.storage import expand_variables, is_url
from stack.evaluate.classifier import SOURCE as CLASSIFIER
from stack.evaluate.classifier import load_classifier
from stack.evaluate.clip import SOURCE as CLIP
from stack.evaluate.clip import Clip, load_clip
from stack.evaluate.dino import SOURCE as DINO
from stack.evaluate.dino import load_dino
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.features import load_judge
from stack.evaluate.hps import SOURCE as HPS
from stack.evaluate.hps import TOKENIZER, load_hps
from stack.evaluate.inception import SOURCE as INCEPTION
from stack.evaluate.inception import cached_file, load_inception
from stack.evaluate.measure import DISTANCES, Tools
from stack.evaluate.suites import Suite
from stack.nets.hub_networks import network_path
from stack.util.errors import UserError

FROM = {
    "inception": INCEPTION,
    "clip": f"{CLIP} (any in transformers' layout)",
    "dino": DINO,
    "hps": HPS,
    "hps_tokenizer": TOKENIZER,
    "classifier": CLASSIFIER,
}
"""Where networks come from, by their fields."""


def tools_of(
    networks: Networks, suite: Suite, measures: Collection[str], device: torch.device
) -> Tools:
    """The networks that the measures of a suite need, loaded.

    Raises:
        UserError: one is not named, or not there; the message says where it comes from.
    """
    tools = Tools()
    if DISTANCES & {*measures}:
        tools = replace(tools, distance=_distance(networks, suite, device))
    clip = _clip(networks, device) if "clip_score" in measures else None
    if clip:
        tools = replace(tools, clip=clip)
    if "in_batch_similarity" in measures:
        tools = replace(tools, similarity=_similarity(networks, clip, device))
    if "hps_score" in measures:
        tools = replace(tools, hps=_hps(networks, device))
    if suite.classes and (networks.classifier or "class_accuracy" in measures):
        tools = replace(
            tools, classifier=load_classifier(_path("classifier", networks), device=device)
        )
    return tools


def _distance(networks: Networks, suite: Suite, device: torch.device) -> KnownExtractor:
    if networks.inception is None and networks.classifier:
        path = _path("classifier", networks)
        return load_judge(path) if path.is_file() else load_classifier(path, device=device)
    resize = networks.resize or suite.resize
    return load_inception(_path("inception", networks), resize=resize, device=device)


def _clip(networks: Networks, device: torch.device) -> Clip:
    return load_clip(_path("clip", networks), device=device)


def _similarity(networks: Networks, clip: Clip | None, device: torch.device) -> KnownExtractor:
    if networks.dino:
        return load_dino(_path("dino", networks), device=device)
    return clip or _clip(networks, device)


def _hps(networks: Networks, device: torch.device) -> Clip:
    weights = _path("hps", networks)
    if not (networks.hps_tokenizer or networks.clip):
        raise UserError(_missing("hps_tokenizer"))
    vocabulary = _path("hps_tokenizer" if networks.hps_tokenizer else "clip", networks)
    return load_hps(weights, vocabulary, device=device)


def place_of(name: str, told: str) -> str:
    """A path or a place in the hub, variables replaced; of a URL, where its file is kept."""
    told = expand_variables(told)
    return str(cached_file()) if name == "inception" and is_url(told) else told


def _path(name: str, networks: Networks) -> Path:
    """Where a network lies on this machine."""
    told = getattr(networks, name)
    if told is None:
        raise UserError(_missing(name))
    path = network_path(name, place_of(name, told))
    if not path.exists():
        raise UserError(
            f"{path}: no such file; {name} comes from {FROM[name]}; what a recipe's "
            "evaluation.networks names, python -m stack fetch RECIPE brings"
        )
    return path


def _missing(name: str) -> str:
    option = "--" + name.replace("_", "-")
    return f"{option}: missing: it comes from {FROM[name]}; or set evaluation.networks.{name}"
