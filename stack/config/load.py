"""From a YAML file and command-line overrides to a checked recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from stack.config.schema import AnyRecipe
from stack.util.errors import UserError

_ALIASES = {
    "rkl": "reverse_kl",
    "srkl": "softened_reverse_kl",
    "js": "jensen_shannon",
    "sh": "squared_hellinger",
    "fkl": "forward_kl",
}
JOBS: dict[str, type[AnyRecipe]] = {
    get_args(kind.model_fields["job"].annotation)[0]: kind for kind in get_args(AnyRecipe)
}
"""Kinds of recipes by their field ``job``."""

_RECIPE: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="job")])


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe.

    Args:
        path: YAML file. A key ``base: other.yaml`` (relative to the file) is read first.
        overrides: ``section.field=value`` items; values are YAML.

    Raises:
        UserError: unreadable file, unknown or ill-typed field; names file, field and remedy.
    """
    raw = _read(Path(path), ())
    given = []
    for item in overrides:
        field, equals, text = item.partition("=")
        if not equals or not field:
            raise UserError(f"command line: {item}: not of the form section.field=value")
        _assign(raw, field, text)
        given.append(field)
    raw.setdefault("job", "distill")
    if isinstance(raw.get("teacher"), dict):
        raw["teacher"].setdefault("kind", "sd")
    divergence = raw.get("divergence")
    if isinstance(divergence, str):
        raw["divergence"] = _ALIASES.get(divergence, divergence)
    try:
        return _RECIPE.validate_python(raw)
    except ValidationError as error:
        field, message = _explain(error)
        source = "command line" if any(_within(field, name) for name in given) else path
        raise UserError(f"{source}: {field}: {message}") from None


def stored_recipe(run: str | Path) -> AnyRecipe:
    """The recipe of a run folder.

    Raises:
        UserError: not the folder of a run.
    """
    stored = Path(run) / "recipe.yaml"
    if not stored.is_file():
        raise UserError(f"{run}: recipe.yaml: missing; not the folder of a run")
    return load_recipe(stored)


def dump_recipe(recipe: BaseModel) -> str:
    """The resolved recipe as YAML that :func:`load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def identity_changes(old: BaseModel, new: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    """Fields of a run's identity that differ: (dotted name, old value, new value)."""
    for name, info in type(new).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        before, after = getattr(old, name, None), getattr(new, name)
        if isinstance(before, BaseModel) and type(before) is type(after):
            for inner, was, now in identity_changes(before, after):
                yield f"{name}.{inner}", was, now
        elif before != after:
            yield name, before, after


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; see recipes/ for the ones that exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a mapping of fields to values")
    raw = _unshared(raw)
    base = raw.pop("base", None)
    if base is None:
        return raw
    parent = path.parent / str(base)
    if not parent.is_file():
        raise UserError(f"{path}: base: {base}: no such file (the path is relative to this file's)")
    seen = (*seen, path.resolve())
    if parent.resolve() in seen:
        raise UserError(f"{path}: base: {base} leads back to itself")
    return _merge(_read(parent, seen), raw)


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is there once each, to be overridden alone."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged


def _assign(raw: dict[str, Any], field: str, text: str) -> None:
    *sections, last = field.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UserError(f"command line: {field}: {section} is not a section")
    try:
        raw[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"command line: {field}: {text!r} is not a YAML value") from None


def _explain(error: ValidationError) -> tuple[str, str]:
    """The dotted name of the first field at fault, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    # The tags of discriminated unions (distill, sd, ...) are not part of the field's name.
    job = location.pop(0) if location else ""
    if len(location) > 2 and location[0] == "teacher":
        location.pop(1)
    field, value = ".".join(location), first["input"]
    match first["type"]:
        case "extra_forbidden":
            near = _nearest(field, _names(JOBS[job]))
            remedy = f"did you mean {near}?" if near else "see stack show-config --fields"
            return field, f"unknown field; {remedy}"
        case "missing" if isinstance(first["loc"][-1], int):
            return ".".join(location[:-1]), f"too few values (got {value!r})"
        case "missing":
            return field, f"missing; give it in the recipe or as {field}=..."
        case "model_type" | "model_attributes_type":
            return field, f"must be a section with fields of its own (got {value!r})"
        case "value_error" if isinstance(value, dict):
            # A validator of a whole section begins its message with the field's name.
            name, _, message = str(first["ctx"]["error"]).partition(": ")
            return ".".join([*location, name]), message
        case "value_error":
            return field, str(first["ctx"]["error"])
        case "union_tag_invalid" | "union_tag_not_found":
            tag = first["ctx"]["discriminator"].strip("'")
            expected = first["ctx"].get("expected_tags", "sd, edm, mixture2d").replace("'", "")
            return ".".join([*location, tag]), f"must be one of {expected} (got {value.get(tag)!r})"
    shown = "" if isinstance(value, dict) else f" (got {value!r})"
    message = first["msg"][0].lower() + first["msg"][1:]
    return field, message.removeprefix("input ") + shown


def _within(field: str, name: str) -> bool:
    """Whether one of two dotted names is the other or a part of it."""
    a, b = f"{field}.", f"{name}."
    return a.startswith(b) or b.startswith(a)


def _nearest(field: str, names: Sequence[str]) -> str | None:
    """The name most like ``field``, or else like its last part."""
    near = difflib.get_close_matches(field, names, 1)
    if near:
        return near[0]
    by_tail = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(field.rpartition(".")[2], by_tail, 1)
    return by_tail[near[0]] if near else None


def _names(model: type[BaseModel]) -> list[str]:
    """Every section and field below ``model``, by dotted name."""
    fields = [name for name, _, _ in field_table(model)]
    parts = [name.split(".") for name in fields]
    sections = {".".join(path[:depth]) for path in parts for depth in range(1, len(path))}
    return [*fields, *sorted(sections)]


def field_table(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field below ``model``: (dotted name, default, docstring)."""
    for name, info in model.model_fields.items():
        inner = list(_models(info.annotation))
        text = " ".join((info.description or "").split())
        if not inner:
            default = "required" if info.is_required() else repr(info.default)
            yield f"{prefix}{name}", default, text
        for section in inner:
            yield from field_table(section, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models(part)
