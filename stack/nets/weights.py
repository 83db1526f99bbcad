"""Which files of a pipeline's component are its weights: those in half precision only where there
are no others."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from stack.nets.pickles import ASK, PICKLES
from stack.util.errors import UserError

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Of a component's safetensors."""
HALF = "fp16"
"""What diffusers calls the variant; it is read as float32, like any other."""
_WEIGHTS = (".safetensors", ".bin")


def weights_name(stem: str, variant: str | None = None) -> str:
    """A component's one file of weights."""
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def index_name(stem: str, variant: str | None = None) -> str:
    """The list of a component's files of weights, where there are several."""
    return (
        f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"
    )


def variant_of(folder: Path) -> str | None:
    """HALF if this folder of a pipeline's component has its weights in half precision alone, else
    None; pickles are others, which `stack fetch` can make safetensors of."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return HALF if folder.name in STEMS and _half_only(folder.name, names) else None


def half_patterns(names: Iterable[str]) -> dict[str, list[str]]:
    """Of a pipeline's components that have their weights in half precision alone, the patterns of
    these files.

    Args:
        names: of all files, with their component in front.
    """
    split = [name.split("/", 1) for name in names if "/" in name]
    found = {}
    for part, stem in STEMS.items():
        if _half_only(part, [name for folder, name in split if folder == part]):
            files = (
                weights_name(stem, HALF),
                index_name(stem, HALF),
                f"{stem}.{HALF}-?????-of-?????.safetensors",
            )
            found[part] = [f"{part}/{name}" for name in files]
    return found


def plain_names(folder: Path) -> None:
    """Where a component, be it one that is not used here, has its weights in half precision alone,
    name these files as whole ones are, so that diffusers loads them without being asked for a
    variant."""
    if folder.name in STEMS:
        half_only = variant_of(folder) == HALF
    else:
        weights = [file.name for file in folder.iterdir() if file.suffix in _WEIGHTS]
        half_only = all(f".{HALF}" in name for name in weights)
    if not half_only:
        return
    for file in list(folder.glob(f"*.{HALF}*")):
        if file.suffix == ".json":
            file.write_text(file.read_text().replace(f".{HALF}-", "-"))
        file.rename(folder / file.name.replace(f".{HALF}", "", 1))


def require_weights(folder: str | Path, part: str) -> str | None:
    """Raise a UserError unless the pipeline folder has a component's config and its weights as
    safetensors; which variant of them diffusers is to read."""
    require(folder, part, "config.json")
    variant, stem = variant_of(Path(folder) / part), STEMS[part]
    if not (Path(folder) / part / index_name(stem, variant)).is_file():
        require(folder, part, weights_name(stem, variant))
    return variant


def require(folder: str | Path, part: str, *needed: str) -> None:
    """Raise a UserError unless the pipeline folder has ``part`` with a file for each of the
    patterns in ``needed``; ``|`` stands between alternatives."""
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder}: model_index.json: no such file; a teacher is a diffusers pipeline folder "
            "(stack pretrain makes one)"
        )
    for patterns in needed:
        if not any(any((folder / part).glob(pattern)) for pattern in patterns.split("|")):
            pickled = patterns.endswith(".safetensors") and any((folder / part).glob("*.bin"))
            lack = ASK if pickled else f"the teacher's folder lacks its {part}"
            raise UserError(f"{folder}: {part}/{patterns}: missing; {lack}")


def _half_only(part: str, names: list[str]) -> bool:
    stem = STEMS[part]
    others = (weights_name(stem, None), index_name(stem, None), *PICKLES[part])
    if any(fnmatch(name, other) for name in names for other in others):
        return False
    return any(name in (weights_name(stem, HALF), index_name(stem, HALF)) for name in names)
