"""The sections that say how the blocks learn: ``feedback`` and ``train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from lowdimfa.losses import IGNORED
from lowdimfa.rules import P_RULES, Q_RULES, TAPS
from lowdimfa.services.spec.section import (
    IMPORT_PATTERN,
    Args,
    ImportPath,
    Rule,
    RuleName,
    Section,
    nearest,
    refusal,
    shortened,
)

_NAMES: dict[str, list[str]] = {
    "q_rule": ["auto", *Q_RULES.built_in],
    "p_rule": [*P_RULES.built_in],
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

    form: Literal["broadcast", "backprop", "local"] = Field(
        "broadcast",
        description="`broadcast` sends the projected output error to every block at once. `backprop` (exact "
        "gradients) and `local` (a small trained head and loss in each block) are baselines.",
    )
    error_dim: int | None = Field(
        None,
        ge=1,
        description="Numbers per sample (or token) that the broadcast carries; null means the task's "
        "dimension, that is the number of classes or regression targets. It can't be larger than that.",
    )
    q_rule: RuleName | Rule = Field(
        "auto",
        description="How a block's feedback weights Q are learned. `readout`: as its own readout, whose error joins "
        "the broadcast one; needs cross-entropy and all the task's dimensions. `hebbian`: from the correlation of its "
        "tap with the broadcast error. `probed`: from that and from noise added to its output in probe micro-batches. "
        "`fixed`: not at all. `auto` takes `readout` where that can be, else `hebbian`. An import path names "
        "a class of your own; [own-rules.md](own-rules.md) has the details, of the two below too.",
        json_schema_extra=_choice("q_rule"),
    )
    own_error: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of a block's own error in what is delivered to it (`q_rule: readout`); the rest is the "
        "broadcast error. 1 is greedy local learning.",
    )
    p_rule: RuleName | Rule = Field(
        "fixed",
        description="How the error projection P is learned: not at all, or by Oja's subspace rule, which "
        "turns its rows towards the error's leading principal directions. It matters only where `error_dim` "
        "is below the task's.",
        json_schema_extra=_choice("p_rule"),
    )
    p_lr: float = Field(
        0.1, gt=0, description="Learning rate of Oja's rule, on an error correlation of trace 1."
    )
    tap: RuleName | Rule = Field(
        "auto",
        description="The function of a block's output at which the error is delivered: the flat output, its "
        "mean over tokens or positions, either of them followed by a layer norm without parameters, or "
        "chosen per block from the shape of its output.",
        json_schema_extra=_choice("tap"),
    )
    every_layer: bool = Field(
        False,
        description="Let the error enter a block at the end of each of its layers that has parameters, and no gradient "
        "pass between them: no block then has a backward pass of its own. Otherwise it enters at the block's end.",
    )
    probe_every: int = Field(4, ge=1, description="Optimiser steps between probes (`q_rule: probed`).")
    probe_noise: float = Field(
        0.05, gt=0, description="Standard deviation of the probe's noise, as a fraction of the output's own."
    )
    probe_decay: float = Field(
        0.99, ge=0, lt=1, description="What a probe leaves of Q; the rest is taken from the probe's estimate."
    )

    @field_validator(*_NAMES)
    @classmethod
    def _known(cls, given: str | Rule, info: ValidationInfo) -> str | Rule:
        names = _NAMES[str(info.field_name)]
        if isinstance(given, str) and given not in names and not set(".:") & set(given):
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
            "q_rule": self.q_rule not in ("auto", "hebbian", "fixed"),
            "p_rule": self.p_rule != "fixed",
            "every_layer": self.every_layer,
        }
        for key in (key for key, given in of_broadcast.items() if given):
            given = getattr(self, key)
            found = f"{given.factory if isinstance(given, Rule) else given!r} with form {self.form!r}"
            raise refusal((key,), found, "form 'broadcast', the only one that uses it")
        return self


class Optimizer(Section):
    """An optimiser by import path."""

    factory: ImportPath = Field(
        "torch.optim.AdamW",
        description="What makes a block's optimiser: called with its parameters and `args`.",
    )
    args: Args = Field(
        {"lr": 0.001},
        description="Keyword arguments of the optimiser. When given they replace the default as a whole.",
    )


class Scheduler(Section):
    """A learning-rate schedule by import path."""

    factory: ImportPath = Field(
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

    optimizer: Optimizer | None = Field(
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


class TrainSection(Section):
    """How long, in what portions and with what optimiser the model is trained."""

    epochs: int | None = Field(
        None, ge=1, description="Passes over the training samples. Give exactly one of `epochs` and `steps`."
    )
    steps: int | None = Field(
        None, gt=0, description="Optimiser steps. Give exactly one of `epochs` and `steps`."
    )
    batch_size: int = Field(128, ge=1, description="Samples per optimiser step.")
    microbatches: int = Field(
        1, ge=1, description="Equal parts into which a batch is cut to keep the pipeline of blocks full."
    )
    staleness: int = Field(
        0,
        ge=0,
        description="Steps by which a forward pass may run ahead of a block's newest update. 0 is the "
        "mathematics of training in one process; 1 or more removes the pipeline's remaining idle time.",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="Micro-batches in flight at most; null means `microbatches * (staleness + 1)`.",
    )
    loss: str = Field(
        "auto",
        pattern=f"^(auto|cross_entropy|mse|bce|{IMPORT_PATTERN})$",
        description="Loss of the head. `auto` is `cross_entropy` for classes and tokens and `mse` (half the "
        "squared error, summed over outputs) for regression; `bce` is the logistic loss. An import path "
        "names a callable that takes outputs and targets and returns the mean over samples.",
        json_schema_extra={"expected": "'auto', 'cross_entropy', 'mse', 'bce' or an import path"},
    )
    ignore_index: int = Field(
        IGNORED,
        description="Class that says that a target doesn't count, such as that of padding. `cross_entropy` leaves it "
        "out; a loss of your own has to, as neither accuracy nor the weights of micro-batches and evaluation batches in "
        "a mean count it.",
    )
    optimizer: Optimizer = Field(Optimizer(), description="Optimiser of every block.")
    scheduler: Scheduler | None = Field(
        None, description="Learning-rate schedule of every block; null keeps the learning rate constant."
    )
    seed: int = Field(0, ge=0, description="From it every random draw of the run is derived.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format of the blocks' computation; weights stay in single precision."
    )
    activations: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Number format in which activations go from block to block; `bf16` halves that traffic. Each "
        "block computes in `precision` all the same.",
    )
    compile: bool = Field(
        False,
        description="Compile each block's layers with `torch.compile`. It needs a C++ compiler on every node, takes up "
        "to minutes before the first step, and pays for blocks of many small operations.",
    )
    grad_clip: float | None = Field(
        None, gt=0, description="Largest norm of a block's update gradient; null means no clipping."
    )
    limit_samples: int | None = Field(
        None, ge=1, description="Train on only the first so many samples; null means all."
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
        return self

    @property
    def effective_window(self) -> int:
        """Micro-batches in flight at most, the default resolved."""
        return self.window or self.microbatches * (self.staleness + 1)

    def for_block(self, index: int) -> BlockTraining:
        """Return how block ``index`` is trained, its overrides applied."""
        own = self.per_block.get(index, BlockOverrides())
        return BlockTraining(
            own.optimizer or self.optimizer, own.scheduler or self.scheduler, own.grad_clip or self.grad_clip
        )
