"""The sections that say how the blocks learn: ``feedback`` and ``train``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from lowdimfa.config import (
    Activations,
    FeedbackConfig,
    Form,
    Precision,
    Source,
    Start,
    TrainingConfig,
    UpdateConfig,
)
from lowdimfa.rules import P_RULES, Q_RULES, TAPS
from lowdimfa.services.spec.given import Given
from lowdimfa.services.spec.section import (
    IMPORT_PATTERN,
    TEST_NUMBERS,
    Args,
    Factory,
    ImportPath,
    MetricSection,
    Rule,
    Section,
    nearest,
    of,
    refusal,
    shortened,
)

_NAMES: dict[str, list[str]] = {
    "q_rule": ["auto", *Q_RULES.built_in],
    "p_rule": ["auto", *P_RULES.built_in],
    "tap": ["auto", *TAPS.built_in],
}
"""What rules and taps may be called, but for import paths."""


def _choice(key: str) -> dict[str, JsonValue]:
    named = ", ".join(map(repr, _NAMES[key]))
    return {
        "expected": f"{named}, an import path such as 'package.module:Class' or a mapping with keys factory and args"
    }


class FeedbackSection(Section):
    """How the output error reaches the blocks."""

    form: Form = of(FeedbackConfig, "form")
    source: Source = of(FeedbackConfig, "source")
    error_dim: int | None = of(FeedbackConfig, "error_dim")
    broadcast: Precision = of(FeedbackConfig, "broadcast")
    q_rule: str | Rule = of(FeedbackConfig, "q_rule", _choice("q_rule"))
    q_start: Start = of(FeedbackConfig, "q_start")
    own_error: float = of(FeedbackConfig, "own_error")
    p_rule: str | Rule = of(FeedbackConfig, "p_rule", _choice("p_rule"))
    p_lr: float = of(FeedbackConfig, "p_lr")
    p_decay: float = of(FeedbackConfig, "p_decay")
    p_every: int = of(FeedbackConfig, "p_every")
    tap: str | Rule = of(FeedbackConfig, "tap", _choice("tap"))
    every_layer: bool = of(FeedbackConfig, "every_layer")
    probe_every: int = of(FeedbackConfig, "probe_every")
    probe_noise: float = of(FeedbackConfig, "probe_noise")
    probe_decay: float = of(FeedbackConfig, "probe_decay")

    @field_validator(*_NAMES)
    @classmethod
    def _known(cls, given: str | Rule, info: ValidationInfo) -> str | Rule:
        names = _NAMES[str(info.field_name)]
        if isinstance(given, str) and given not in names and not re.fullmatch(IMPORT_PATTERN, given):
            hint = nearest(given, names)
            raise refusal(
                (), f"the string {shortened(given)}", str(_choice(str(info.field_name))["expected"]), hint
            )
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form == "broadcast":
            return self
        of_broadcast = {
            "error_dim": self.error_dim is not None,
            "broadcast": self.broadcast != "fp32",
            "q_rule": self.q_rule not in ("auto", "hebbian", "fixed"),
            "q_start": self.q_start == "identity",
            "p_rule": self.p_rule not in ("auto", "fixed"),
            "every_layer": self.every_layer,
        }
        for key in (key for key, given in of_broadcast.items() if given):
            given = getattr(self, key)
            found = f"{given.factory if isinstance(given, Rule) else given!r} with form {self.form!r}"
            raise refusal((key,), found, "form 'broadcast', the only one that uses it")
        return self


_DEFAULT = UpdateConfig().optimizer


class Optimizer(Section):
    """An optimiser by import path."""

    factory: Factory = Field(
        _DEFAULT.name,
        description="What makes a block's optimiser: called with its parameters and `args`.",
    )
    args: Args = Field(
        dict(_DEFAULT.args),
        description="Keyword arguments of the optimiser. When given they replace the default as a whole.",
    )


class BlockOptimizer(Section):
    """The optimiser of one block."""

    factory: Factory | None = Field(
        None, description="What makes this block's optimiser; null means what makes those of all."
    )
    args: Args = Field(
        dict(_DEFAULT.args), description="Keyword arguments of this block's optimiser, all of them."
    )

    def beside(self, of_all: Optimizer) -> Optimizer:
        """Return it as a whole, beside the optimiser of all blocks."""
        return of_all.model_copy(update={"factory": self.factory or of_all.factory, "args": self.args})


class Scheduler(Section):
    """A learning-rate schedule by import path."""

    factory: Factory = Field(
        description="What makes a block's learning-rate schedule: called with its optimiser and `args`, "
        "stepped once per optimiser step."
    )
    args: Args = Field(
        {},
        description="Keyword arguments of the schedule. Where it takes `total_steps` and neither that nor "
        "`epochs` is given, the steps of the run are filled in.",
    )


class BlockOverrides(Section):
    """What one block does differently; null means as in `train`."""

    optimizer: BlockOptimizer | None = Field(
        None, description="Optimiser of this block; null means as in `train`."
    )
    scheduler: Scheduler | None = Field(None, description="Schedule of this block; null means as in `train`.")
    grad_clip: float | None = Field(
        None, gt=0, description="Clipping of this block; null means as in `train`."
    )


@dataclass(frozen=True)
class BlockTraining:
    """How one block is trained, its overrides applied."""

    optimizer: Optimizer
    scheduler: Scheduler | None
    grad_clip: float | None


MetricName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", json_schema_extra={"expected": "a name"})
]


def metric_names(given: Iterable[str]) -> list[str]:
    """Return the names of metrics: those of a mapping, or of a list of import paths each one's last part."""
    return [re.split(r"[.:]", each)[-1] for each in given]


class RankSection(Section):
    """Activations as factors of low rank."""

    rank: int = Field(
        ge=1,
        description="Numbers that stand for the features of each position: of a token, a pixel of a feature map, or a "
        "flat sample. Fewer are fewer bytes.",
    )


class AverageSection(Section):
    """A moving average of the weights."""

    decay: float = Field(
        0.999, ge=0, lt=1, description="What stays of the average at each step; the rest is the weights'."
    )


class TrainSection(Section):
    """How long, in what portions and with what optimiser the model is trained."""

    epochs: int | None = Field(
        None, ge=1, description="Passes over the training samples. Give exactly one of `epochs` and `steps`."
    )
    steps: int | None = Field(
        None, gt=0, description="Optimiser steps. Give exactly one of `epochs` and `steps`."
    )
    batch_size: int = Field(128, ge=1, description="Samples per optimiser step.")
    microbatches: int = of(
        TrainingConfig, "microbatches", {"expected": "an integer of at least 1, or 'auto'"}
    )
    staleness: int = of(TrainingConfig, "staleness")
    window: int | None = Field(
        None,
        ge=1,
        description="Micro-batches in flight at most; null means `microbatches * (staleness + 1)`.",
    )
    loss: (
        Annotated[str, Field(pattern=f"^(auto|cross_entropy|mse|bce|{IMPORT_PATTERN})$")]
        | SkipJsonSchema[Given]
    ) = of(TrainingConfig, "loss", {"expected": "'auto', 'cross_entropy', 'mse', 'bce' or an import path"})
    ignore_index: int = of(TrainingConfig, "ignore_index")
    loss_chunk: int | None = of(TrainingConfig, "loss_chunk")
    optimizer: Optimizer = Field(Optimizer(), description="Optimiser of every block.")
    scheduler: Scheduler | None = Field(
        None, description="Learning-rate schedule of every block; null keeps the learning rate constant."
    )
    seed: int = of(TrainingConfig, "seed")
    precision: Precision = of(TrainingConfig, "precision")
    activations: Activations | RankSection = of(
        TrainingConfig,
        "activations",
        {"expected": "'fp32', 'bf16', 'int8', 'int4' or a mapping with key rank"},
    )
    compile: bool = of(TrainingConfig, "compile")
    grad_clip: float | None = of(UpdateConfig, "grad_clip")
    steps_per_epoch: int | None = Field(
        None,
        ge=1,
        description="Steps after which an epoch of training samples from an iterable data set ends, and the next begins "
        "the stream anew; needed where that has no length. Of map-style data sets an epoch is all samples.",
    )
    limit_samples: int | None = Field(
        None, ge=1, description="Train on only the first so many samples; null means all."
    )
    average: AverageSection | None = Field(
        None,
        description="Keep an exponential moving average of each block's weights, and evaluate with it. Checkpoints "
        "have it beside the weights; `lowdimfa export --average` takes it.",
    )
    metrics: dict[MetricName, ImportPath | MetricSection] | list[ImportPath] = Field(
        {},
        description="What evaluations measure beside loss and accuracy, by name: an import path, or a mapping with "
        "`factory` and `args`. A list of import paths names each by its last part: [callbacks.md](callbacks.md#metrics).",
        json_schema_extra={
            "expected": "a mapping from names (letters, digits and _) to metrics, or a list of import paths"
        },
    )
    log_every: int = Field(10, ge=1, description="Optimiser steps between progress reports.")
    per_block: dict[Annotated[int, Field(ge=0)], BlockOverrides] = Field(
        {},
        description="Overrides by block index, counted from 0.",
        json_schema_extra={"expected": "a mapping from block indexes (integers from 0) to overrides"},
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise refusal(("epochs",), "neither 'epochs' nor 'steps'", "exactly one of them")
        if self.epochs is not None and self.steps is not None:
            raise refusal(
                ("epochs",), "both 'epochs' and 'steps'", "exactly one of them", "Set one of them to null."
            )
        if self.batch_size % self.microbatches:
            raise refusal(
                ("microbatches",), str(self.microbatches), f"a divisor of batch_size ({self.batch_size})"
            )
        names = metric_names(self.metrics)
        taken = {*TEST_NUMBERS, *(name.removeprefix("test_") for name in TEST_NUMBERS)}
        twice = next((name for name in names if names.count(name) > 1 or name in taken), None)
        if twice is not None:
            expected = "a name of its own for each metric, and none that every evaluation has"
            raise refusal(("metrics",), f"the name {twice!r}", expected, "A mapping names them as you like.")
        return self

    @property
    def named_metrics(self) -> dict[str, MetricSection]:
        """The metrics by name, however they are given."""
        given = self.metrics.values() if isinstance(self.metrics, dict) else self.metrics
        sections = [MetricSection(factory=each) if isinstance(each, str) else each for each in given]
        return dict(zip(metric_names(self.metrics), sections, strict=True))

    @property
    def effective_window(self) -> int:
        """Micro-batches in flight at most, the default resolved."""
        return self.window or self.microbatches * (self.staleness + 1)

    def for_block(self, index: int) -> BlockTraining:
        """Return how block ``index`` is trained, its overrides applied."""
        own = self.per_block.get(index, BlockOverrides())
        return BlockTraining(
            own.optimizer.beside(self.optimizer) if own.optimizer else self.optimizer,
            own.scheduler or self.scheduler,
            own.grad_clip or self.grad_clip,
        )
