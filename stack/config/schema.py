"""The recipe: every field of ``stack distill`` with its type, default and meaning.

Sections that ``stack pretrain`` has as well are in sections.py, its own in pretrain.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stack.config.edm import EdmPretrainRecipe, EdmTeacher
from stack.config.evaluation import Evaluation
from stack.config.pretrain import PretrainRecipe
from stack.config.sections import (
    OPERATIONAL,
    Adam,
    Count,
    Data,
    Fraction,
    Positive,
    Rate,
    Recipe,
    Section,
    Weight,
)

Divergence = Literal[
    "reverse_kl",
    "softened_reverse_kl",
    "jensen_shannon",
    "squared_hellinger",
    "forward_kl",
    "jeffreys",
]


def _ascending(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first time {pair[0]} is above the last one {pair[1]}")
    return pair


TimeRange = Annotated[tuple[Count, Count], AfterValidator(_ascending)]


class Optim(Section):
    """One optimizer per trained network."""

    student: Adam
    fake: Adam
    heads: Adam


class Ratio(Section):
    """From discriminator logits to the weight h (paper, Section 3.3)."""

    warmup: Count = 0
    """Iterations with h = 1, while the discriminator learns."""
    ramp: Count = 0
    """Iterations over which h is then blended in."""
    logit_clamp: Rate = 10.0
    """|logit| bound [F]."""
    r_min: Rate = 0.1
    """Least r [F]."""
    r_max: Rate = 20.0
    """Greatest r [F]."""
    normalize_r: bool = True
    """First normalisation: r by its mean per noise level, so that E_q[r_t] = 1."""
    normalize_h: bool = True
    """Second normalisation: h by its mean over the global batch."""
    bins: Positive = 10
    """Noise levels, as quantiles of log-SNR under the sampled times."""
    decay: Fraction = 0.9
    """Memory of the per-level mean, per student step."""
    prior: Weight = 16.0
    """Samples' worth of belief in the mean over all levels; keeps a lone sample from
    normalising itself to 1."""

    @model_validator(mode="after")
    def _bounds(self) -> Ratio:
        if self.r_min >= self.r_max:
            raise ValueError(f"r_min: {self.r_min} is not below r_max {self.r_max}")
        return self


class Gan(Section):
    """The discriminator: it reads the density ratio, and its loss may also train the student."""

    weight: Weight = 1e-3
    """Weight of the student's GAN loss (Table 5); at 0 the discriminator is trained all the
    same, for the ratio."""
    r1_gamma: Weight = 1.0
    """Weight of the R1-type penalty (Table 5)."""
    r1_noise: Rate = 0.1
    """Standard deviation of the perturbation in the approximate R1 penalty."""
    features: Literal["teacher", "fake", "fake_joint"] = "teacher"
    """Fig. 7: (b) teacher's features, (c) the fake score's with the loss training the head
    only, (a) the fake score's with the loss training both."""
    resolutions: list[Positive] = Field(default=[8], min_length=1)
    """Sizes of the feature maps that get a head each (Table 5)."""
    width: Positive = 256
    """Channels inside a head."""


class Times(Section):
    """Ranges of t, both ends included."""

    score: TimeRange = (20, 980)
    """For the score difference, ratio and GAN [F] DMD2."""
    fake: TimeRange = (0, 999)
    """For the fake score's denoising loss."""


class Compute(Section):
    """How networks are computed; results differ by rounding only."""

    attention: Literal["sdpa", "xformers", "math"] = Field(
        default="sdpa", json_schema_extra=OPERATIONAL
    )
    """sdpa: torch's operator, on CUDA flash or cuDNN; xformers: its memory-efficient one (CUDA
    only); math: plain matrix products."""
    compile: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """torch.compile of each block; the first iterations take minutes."""
    checkpointing: Literal["none", "selective", "full"] = Field(
        default="none", json_schema_extra=OPERATIONAL
    )
    """Activations of student and fake score that are computed a second time in the backward rather
    than kept. selective: all but the results of matrix products, convolutions and attention; full:
    all but the inputs of blocks."""


class SDTeacher(Section):
    """A diffusers text-to-image pipeline."""

    kind: Literal["sd"] = "sd"
    """sd: a pipeline in Stable Diffusion's layout."""
    path: str
    """Pipeline folder, or hub id (org/name) that stack fetch has staged."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit of the hub repository, 40 hex digits; for a hub id only."""
    allow_pickle: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Whether stack fetch may make safetensors of weights that are there as pickles only, beside
    them; everything else reads safetensors alone."""


class Mixture2DTeacher(Section):
    """A ring of Gaussians in the plane with its analytic score (paper, Fig. 2 and 8)."""

    kind: Literal["mixture2d"]
    """mixture2d: analytic, without a file."""
    modes: Positive = 5
    """Equal Gaussians on a ring, the first on the positive x axis."""
    radius: Rate = 1.9
    """Of the ring."""
    std: Rate = 0.25
    """Standard deviation of each mode."""
    start: tuple[float, float] = (0.6, 0.0)
    """Centre of the Gaussian that the student and the fake score start as."""
    start_std: Rate = 0.75
    """Its standard deviation."""
    student_width: Positive = 6
    """Hidden units of the student; few, so that it cannot have every mode sharp and the
    divergence decides between some modes sharp and all of them blurred."""
    width: Positive = 64
    """Hidden units of the fake score; gan.width is the head's."""


Teacher = Annotated[SDTeacher | EdmTeacher | Mixture2DTeacher, Field(discriminator="kind")]


class DistillRecipe(Recipe):
    """``stack distill``: a one-step student from a many-step teacher."""

    job: Literal["distill"] = "distill"
    """Which verb the recipe is for."""
    teacher: Teacher
    data: Data | None = None
    """Unset for a teacher that is its own data (mixture2d)."""
    global_batch: Positive | None = None
    """Samples per iteration where no data section says it."""
    divergence: Divergence
    """The f-divergence D_f(teacher || student) (Table 1)."""
    alternation: Literal["joint", "exclusive"] = "joint"
    """joint: critics on every iteration, the student on every k-th as well (DMD2);
    exclusive: k - 1 critic iterations, then one of the student."""
    student_every: Positive = 5
    """k, the paper's fake score update frequency (Table 5)."""
    iterations: Positive = Field(json_schema_extra=OPERATIONAL)
    """All iterations, not student updates."""
    guidance: Rate = 1.0
    """Classifier-free guidance weight of the teacher (Table 5)."""
    times: Times = Times()
    ratio: Ratio = Ratio()
    gan: Gan = Gan()
    compute: Compute = Compute()
    optim: Optim
    init_from: str | None = None
    """Run folder that has ended, or any of its checkpoints/step-*: student, fake score and heads
    start from its weights (another divergence's, say) instead of the teacher's; nothing else is
    taken over."""
    ema: Fraction = 0.9999
    """Decay of the student's average, which is what is evaluated and exported; 0 for none [F]."""
    ema_also: list[Fraction] = Field(default=[])
    """Decays of further averages, for stack export --ema."""
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _whole(self) -> DistillRecipe:
        if self.data is None and self.teacher.kind != "mixture2d":
            raise ValueError("data: missing; give data.folders and data.global_batch")
        if (self.data is None) == (self.global_batch is None):
            raise ValueError("global_batch: give either this or a data section, and not both")
        if self.alternation == "exclusive" and self.student_every < 2:
            raise ValueError("student_every: must be at least 2 with alternation exclusive")
        return self

    @property
    def averages(self) -> list[float]:
        """Decays of the student's averages."""
        return list(dict.fromkeys(filter(None, [self.ema, *self.ema_also])))

    @property
    def batch_size(self) -> int:
        """Samples per iteration over all ranks and micro-batches."""
        return self.data.global_batch if self.data else (self.global_batch or 0)


AnyRecipe = DistillRecipe | PretrainRecipe | EdmPretrainRecipe
"""Of each value of the field ``job``."""
