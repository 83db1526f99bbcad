"""Published figures of the paper and of others, from published.yaml beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

_FILE = Path(__file__).with_name("published.yaml")

Metric = Literal[
    "frechet_distance",
    "recall",
    "clip_score",
    "latency_seconds",
    "in_batch_similarity",
    "hps_anime",
    "hps_photo",
    "hps_concept-art",
    "hps_paintings",
]


class Row(BaseModel):
    """One published result.

    Args:
        kind: the teacher, one of the paper's students, or another paper's method.
        nfe: network evaluations a picture. cfg: weight of guidance. None where not said.
        gan: False for a student trained without the GAN loss. note: what else sets it apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["teacher", "paper", "other"]
    method: str = Field(min_length=1)
    nfe: int | None = Field(default=None, ge=1)
    cfg: float | None = Field(default=None, ge=1)
    gan: bool = True
    note: str = ""
    metrics: dict[Metric, float] = Field(min_length=1)

    @property
    def hint(self) -> str:
        """What tells the row from others of its method."""
        said = ["teacher"] * (self.kind == "teacher")
        said += [f"{self.nfe} NFE"] if self.nfe else []
        said += [f"guidance {self.cfg:g}"] if self.cfg and self.cfg != 1 else []
        said += ["without GAN loss"] if not self.gan else []
        return ", ".join([*said, *filter(None, [self.note])])


def rows(dataset: str) -> list[Row]:
    """Every result on a data set, in the file's order: the teacher's, the paper's, others'.

    Raises:
        KeyError: no such data set; :func:`datasets` names them.
    """
    return _published()[dataset]


def datasets() -> list[str]:
    """The data sets that there are results on."""
    return list(_published())


@cache
def _published() -> dict[str, list[Row]]:
    schema = TypeAdapter(dict[str, list[Row]])
    return schema.validate_python(yaml.safe_load(_FILE.read_text()))
