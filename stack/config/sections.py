"""Sections of a recipe that both jobs have, and the types of their fields.

A field is part of a run's *identity* (changing it makes another experiment, so a resume refuses
it) unless it is marked ``OPERATIONAL`` (how the same experiment is run, watched and saved).
[F] in a docstring: not in the paper, the custom of public code (FastGen, DMD2).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OPERATIONAL: dict[str, Any] = {"operational": True}

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

_SECRET = re.compile(
    r"://[^/]*:.*@"  # A password, which may hold anything, up to the last @.
    r"|(?<!abfs)(?<!abfss)(?<!hf)://[^/]*@"  # A user; of these, a container or a repository.
    r"|https?://.*\?|://.*\?.*=",  # A query; elsewhere a bare ? is a pattern.
    re.DOTALL,
)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Data(Section):
    """Where samples come from and how many make a global batch."""

    folders: list[str] = Field(min_length=1, json_schema_extra=OPERATIONAL)
    """Shard folders, each with a manifest.json: paths or URLs (s3://, gs://, hf://, https://),
    with $VARIABLES, globs and braces. They may move: the data's fingerprint is what counts."""
    weights: list[Weight] | None = None
    """Share of the batch per entry of folders, each then with epochs of its own. All folders are
    one dataset if unset."""
    global_batch: Positive
    """Samples per iteration over all ranks and micro-batches (paper, Table 5)."""
    lanes: Positive | None = None
    """Canonical lanes; a divisor of the global batch. The global batch itself if unset."""
    window: Positive = 4096
    """Samples within which a lane is shuffled."""
    workers: Count = Field(default=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank."""
    prefetch: Positive = Field(default=2, json_schema_extra=OPERATIONAL)
    """Batches each loader process reads ahead."""
    bad_samples: Fraction = Field(default=1e-3, json_schema_extra=OPERATIONAL)
    """Share of an epoch's samples that may be damaged (each is replaced by a neighbour) before
    training stops."""
    retries: Count = Field(default=6, json_schema_extra=OPERATIONAL)
    """Tries after the first where reading or fetching fails for the moment, 0.5, 1, 2, ... 30 s
    apart."""
    cache: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Folder on this node's disk for remote shards, shared by its processes, with $VARIABLES;
    f-distill-shards-UID in $TMPDIR if unset."""
    cache_gb: Rate = Field(default=100.0, json_schema_extra=OPERATIONAL)
    """Size of the cache at most, GB."""

    @field_validator("folders")
    @classmethod
    def _no_secrets(cls, folders: list[str]) -> list[str]:
        for number, folder in enumerate(folders):
            if _SECRET.search(folder):
                raise ValueError(
                    f"the URL of entry {number} holds a password or a query; recipes are saved "
                    "and shown, so put it into an environment variable and write $NAME"
                )
        return folders

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.weights is not None and len(self.weights) != len(self.folders):
            raise ValueError(
                f"weights: {len(self.weights)} of them for {len(self.folders)} folders"
            )
        if self.lanes and self.global_batch % self.lanes:
            raise ValueError(
                f"lanes: {self.lanes} does not divide the global batch {self.global_batch}"
            )
        return self


class Adam(Section):
    """AdamW and its learning-rate schedule, for one trained network."""

    kind: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    """adamw: moments in float32; adamw8bit: in 8 bits, by bitsandbytes, with fsdp by torchao;
    paged_adamw8bit: these move to the CPU's memory when the GPU's is full."""
    lr: Rate
    """Peak learning rate (paper, Table 5)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """[F] DMD2."""
    weight_decay: Weight = 1e-2
    """Decoupled weight decay (paper, Table 5)."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    clip: Rate = 10.0
    """Global gradient norm above which the gradient is scaled down [F] DMD2."""
    warmup: Count = 500
    """Linear warmup in steps of this network [F] DMD2."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """What the rate does after the warmup, until the last step."""


class Parallel(Section):
    """How the work is laid over processes."""

    backend: Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"] = Field(
        default="none", json_schema_extra=OPERATIONAL
    )
    """none: one process; ddp: every rank holds the networks, gradients are averaged; fsdp: the
    trained networks are cut over ranks (PyTorch's FSDP2); zero1, zero2, zero3: DeepSpeed cuts
    the optimizer, the gradients too, the weights too."""
    processes: Positive = Field(default=1, json_schema_extra=OPERATIONAL)
    """Ranks the command starts on this machine, where no launcher (torchrun, srun) did."""
    accumulation: Positive = Field(default=1, json_schema_extra=OPERATIONAL)
    """Micro-batches per iteration."""
    micro_batch: Positive | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Instead of accumulation: samples of a rank's micro-batch at most. As many micro-batches are
    made as that takes, so the same run goes on, with the same global batch, on fewer ranks."""
    shard_size: Positive | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """With fsdp, ranks that share one copy of the weights (HSDP: a node's GPUs); all if unset."""
    teacher: Literal["replicated", "sharded"] = Field(
        default="replicated", json_schema_extra=OPERATIONAL
    )
    """Whether every rank holds the whole teacher, or a part of it that is gathered block by
    block; with precision bf16 it is held in bfloat16."""
    offload: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Keep what is cut over ranks, and its optimizer, in the CPU's memory."""
    timeout: Rate = Field(default=600.0, json_schema_extra=OPERATIONAL)
    """Seconds after which a rank that waits for another gives up."""
    watchdog: Weight = Field(default=480.0, json_schema_extra=OPERATIONAL)
    """Seconds without an iteration after which a rank writes the stacks of its threads to its log
    and ends; below timeout, so that every rank tells where it was. Ten times as many in what is no
    iteration. 0: never."""

    @model_validator(mode="after")
    def _fits(self) -> Parallel:
        if self.processes > 1 and self.backend == "none":
            raise ValueError(
                f"processes: {self.processes}, but backend: none is one process; "
                "set parallel.backend=ddp"
            )
        if self.micro_batch and self.accumulation > 1:
            raise ValueError(
                f"micro_batch: {self.micro_batch}, and accumulation: {self.accumulation}; give one"
            )
        if self.shard_size and self.backend != "fsdp":
            raise ValueError(f"shard_size: {self.shard_size} is for fsdp, not {self.backend}")
        if self.offload and self.backend in ("none", "ddp"):
            raise ValueError(f"offload: {self.backend} cuts nothing over ranks; set fsdp or zero1")
        if self.teacher == "sharded" and self.backend == "none":
            raise ValueError("teacher: sharded, but backend: none is one process")
        return self


class Checkpoint(Section):
    """When state is saved and what is kept."""

    every: Positive = Field(default=500, json_schema_extra=OPERATIONAL)
    """Iterations between saves; the last iteration is always saved."""
    keep_last: int = Field(default=2, ge=2, json_schema_extra=OPERATIONAL)
    """Newest checkpoints kept."""
    keep_every: Count = Field(default=0, json_schema_extra=OPERATIONAL)
    """Checkpoints at multiples of this are kept for good; 0 for none."""
    keep_best: Count = Field(default=1, json_schema_extra=OPERATIONAL)
    """Best checkpoints kept for good, by the quick evaluation (evaluation.quick_every)."""
    background: bool = Field(default=True, json_schema_extra=OPERATIONAL)
    """Write while training goes on; the state is copied first, and takes as much memory again on
    the CPU."""


class Log(Section):
    """What a run tells while it runs."""

    every: Positive = Field(default=10, json_schema_extra=OPERATIONAL)
    """Iterations between rows of metrics.jsonl and TensorBoard."""
    sample_every: Count = Field(default=0, json_schema_extra=OPERATIONAL)
    """Iterations between sample grids under samples/; 0 for none."""
    prompts: list[str] = Field(default=[], json_schema_extra=OPERATIONAL)
    """Prompts of the grids; the first captions of the data if empty."""


class Recipe(Section):
    """What both jobs share."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the run."""
    seed: Count = 0
    """Every random number of the run follows from it."""
    out: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Run folder; runs/<name> if unset."""
    parallel: Parallel = Parallel()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    device: str = Field(default="auto", json_schema_extra=OPERATIONAL)
    """``auto`` takes CUDA where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast over fp32 master weights."""

    @model_validator(mode="before")
    @classmethod
    def _default_out(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not raw.get("out") and isinstance(raw.get("name"), str):
            return {**raw, "out": f"runs/{raw['name']}"}
        return raw
