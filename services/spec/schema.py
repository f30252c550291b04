"""The specification of a run: every key, its type, its default and what it means.

The descriptions here are the reference: `tools.configuration_page` makes ``docs/configuration.md`` from them, and
the refusals of `lowdimfa.services.spec.load` take what they expected from the same types.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lowdimfa.services.spec.addresses import PLAIN, has_credentials
from lowdimfa.services.spec.automatic import with_microbatches
from lowdimfa.services.spec.data import DataSection
from lowdimfa.services.spec.faults import WIRE_KINDS, DrillSection
from lowdimfa.services.spec.learning import FeedbackSection, TrainSection
from lowdimfa.services.spec.placement import PlacementSection
from lowdimfa.services.spec.section import (
    TEST_NUMBERS,
    Args,
    Factory,
    ImportPath,
    LayerName,
    Section,
    less_is_better,
    nearest,
    refusal,
    shortened,
)
from lowdimfa.services.spec.weights import Patterns, WeightsSection


class ModelSection(Section):
    """The network and where it is cut into blocks."""

    factory: Factory = Field(
        description="What makes the model: called with `args`, returns a `torch.nn.Module`."
    )
    args: Args = Field({}, description="Keyword arguments of the factory.")
    blocks: Annotated[int, Field(ge=1)] | Annotated[list[LayerName], Field(min_length=1)] = Field(
        description="How many blocks to cut the model into, or the names of the layers at which the second "
        "and later blocks start. The last block is the head. Layer names are strings: quote those that look "
        "like numbers.",
        json_schema_extra={"expected": "an integer of at least 1 or a list of layer names"},
    )
    balance: Literal["flops", "time"] = Field(
        "flops",
        description="What an automatic cut makes even between blocks: counted floating-point operations, the same in "
        "every run; or `time`, as whole blocks take it on the machine of the trainer (forward, update and optimiser, at "
        "the run's micro-batch size and threads), so that two runs of one specification may be cut differently.",
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="Keep the weights of two-dimensional convolutions, and with them the feature maps, with channels "
        "last in memory, which is faster. `auto` does so where all modules are those of `torch.nn` or of this package, "
        "and optimisers those of `torch.optim` or of this package: code of your own may read feature maps, or weights, "
        "as they lie (`view` fails on such). Other models are not affected.",
    )

    weights: Annotated[str, Field(min_length=1)] | WeightsSection | None = Field(
        None,
        description="Weights with which a new run begins in place of those that the factory draws: a safetensors file "
        "with the plain model's names, as `lowdimfa export` writes it, or a folder with some, with or without an index. "
        "Each process reads those of its own block; on a cluster every node needs them at this path. A run that is "
        "resumed has its weights from the checkpoint. A mapping says what may be missing, or left over.",
    )
    frozen: Patterns = Field(
        [],
        description="Patterns of names of parameters, such as `0.*`, that stay as they are: `*` is any number of "
        "characters. So do those to which the factory gives `requires_grad=False`. A block with nothing to learn gets no "
        "errors and makes no updates.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.blocks, list):
            twice = min((name for name, times in Counter(self.blocks).items() if times > 1), default=None)
            if twice is not None:
                raise refusal(("blocks",), f"{shortened(twice)} more than once", "each layer name once")
        return self

    @property
    def weights_section(self) -> WeightsSection | None:
        """The weights as a section, however they are given."""
        return WeightsSection(path=self.weights) if isinstance(self.weights, str) else self.weights

    @property
    def block_count(self) -> int:
        """Number of blocks, the head included."""
        return self.blocks if isinstance(self.blocks, int) else len(self.blocks) + 1


class CallbackSection(Section):
    """A callback by import path."""

    factory: ImportPath = Field(
        description="Called with `args`, returns the callback: a `lowdimfa.Callback`."
    )
    args: Args = Field({}, description="Keyword arguments of the callback.")


class BestSection(Section):
    """Which checkpoint is the best."""

    metric: str = Field(
        "test_loss",
        description="What is compared: a number of the `evaluated` event, or the name of one in `train.metrics`.",
    )
    mode: Literal["auto", "min", "max"] = Field(
        "auto",
        description="Whether less or more is better. `auto` is `max` for `test_accuracy` and `min` for losses and "
        "perplexities; metrics of your own need one of the others.",
    )

    @property
    def less_is_better(self) -> bool:
        """Whether the best value is the smallest one."""
        return less_is_better(self.metric) if self.mode == "auto" else self.mode == "min"

    @property
    def meaning(self) -> dict[str, Any]:
        """What it says, however it is written."""
        return {"metric": self.metric, "less_is_better": self.less_is_better}


class RunSection(Section):
    """Where a run is kept and what is recorded."""

    storage: str = Field(
        "runs",
        min_length=1,
        description="Folder in which each run gets a folder of its own, or an address in an object store, such as "
        "`s3://bucket/prefix`: [storage.md](storage.md).",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="Optimiser steps between checkpoints; 0 means only at the end."
    )
    background_checkpoints: bool = Field(
        True,
        description="Training goes on while a checkpoint is written [from a copy](storage.md#in-the-background).",
    )
    keep: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    keep_best: BestSection | None = Field(
        None,
        description="Also keep the checkpoint with the best evaluation. An evaluation that is better than all before is "
        "followed by a checkpoint. `lowdimfa evaluate --best` and `export --best` take it.",
    )
    on_failure: Literal["fail", "restart", "rejoin"] = Field(
        "fail",
        description="What happens when a block is lost. `fail`: the run ends, and can be resumed from its last "
        "checkpoint. `restart`: all blocks go back to the last complete checkpoint. `rejoin`: only the lost block is "
        "replaced, from its newest snapshot, while the others keep their state and wait. With `restart` and `rejoin` "
        "a lost trainer too is replaced, from the last checkpoint.",
    )
    max_recoveries: int = Field(
        10,
        ge=1,
        description="Recoveries within `recovery_window_seconds` after which the next loss ends the run.",
    )
    recovery_window_seconds: float = Field(
        600.0, gt=0, description="Time after which a recovery no longer counts against `max_recoveries`."
    )
    snapshot_every: int = Field(
        20,
        ge=1,
        description="Optimiser steps between the snapshots of its state that a block keeps outside its own process "
        "with `on_failure: rejoin`: the most of its own steps that a lost block loses.",
    )
    liveness_seconds: float = Field(
        60.0,
        gt=0,
        description="Silence after which a block is taken for lost. Heartbeats, deadlines and time-outs derive from it.",
    )
    evaluate_every_epochs: int = Field(
        1, ge=0, description="Epochs between evaluations; 0 evaluates only at the end, as every run does."
    )
    alignment_every: int = Field(
        0,
        ge=0,
        description="Steps between comparisons of each block's update with the true gradient, by a reference "
        "backward pass on 256 training samples; 0 for none.",
    )
    timeline: bool = Field(True, description="Record when each block computed, sent and waited.")
    tensorboard: bool = Field(
        True, description="Write event files for TensorBoard into the run's directory, under `tensorboard`."
    )
    callbacks: list[CallbackSection] = Field(
        [],
        description="What is told of the run's events, in this order, and may end it: [callbacks.md](callbacks.md).",
        json_schema_extra={"expected": "a list of callbacks, each a mapping with keys factory and args"},
    )
    metrics: Literal["loopback", "node", "off"] = Field(
        "loopback",
        description="Where each process serves its Prometheus metrics: on its own machine only, on the address by "
        "which other machines reach it (the pages have no authentication), or nowhere.",
    )

    @field_validator("storage")
    @classmethod
    def _without_credentials(cls, storage: str) -> str:
        if has_credentials(storage):
            raise refusal((), *PLAIN)
        return storage


class Specification(Section):
    """Everything that defines a run."""

    model: ModelSection = Field(description="The network and where it is cut into blocks.")
    data: DataSection = Field(description="What the model is trained on.")
    feedback: FeedbackSection = Field(
        default_factory=FeedbackSection, description="How the output error reaches the blocks."
    )
    train: TrainSection = Field(description="How long, in what portions and with what optimiser.")
    run: RunSection = Field(
        default_factory=RunSection, description="Where a run is kept and what is recorded."
    )
    placement: PlacementSection = Field(
        default_factory=PlacementSection, description="What each block gets from the cluster."
    )
    drill: DrillSection = Field(
        default_factory=DrillSection, description="Faults to inject, for tests and drills."
    )

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, values: Any) -> Any:
        return with_microbatches(values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = self.model.block_count
        beyond = sorted(index for index in self.train.per_block if index >= blocks)
        if beyond:
            expected = f"an index from 0 to {blocks - 1}, as model.blocks makes {blocks}"
            raise refusal(("train", "per_block", beyond[0]), f"block {beyond[0]}", expected)
        for index, fault in enumerate(self.drill.faults):
            if fault.block >= blocks:
                expected = f"an index from 0 to {blocks - 1}, as model.blocks makes {blocks}"
                raise refusal(("drill", "faults", index, "block"), str(fault.block), expected)
            if fault.replica >= (number := self.replicas_of(fault.block)):
                expected = f"a number below {number}, the replicas of block {fault.block}"
                raise refusal(("drill", "faults", index, "replica"), str(fault.replica), expected)
            if fault.kind in WIRE_KINDS and blocks == 1:
                expected = "model.blocks of at least 2, as a block alone receives nothing"
                raise refusal(("drill", "faults", index, "kind"), repr(fault.kind), expected)
        self._check_threads()
        self._check_replicas()
        if self.run.keep_best is not None and (metric := self.run.keep_best.metric) not in self.test_numbers:
            expected, hint = f"one of {', '.join(self.test_numbers)}", nearest(metric, self.test_numbers)
            raise refusal(("run", "keep_best", "metric"), shortened(metric), expected, hint)
        if (best := self.run.keep_best) and best.mode == "auto" and best.metric not in TEST_NUMBERS:
            found = f"'auto' for the metric {best.metric!r}"
            raise refusal(("run", "keep_best", "mode"), found, "'min' or 'max', whichever is better")
        if self.feedback.form == "backprop" and self.train.staleness:
            found = f"{self.train.staleness} with feedback.form 'backprop'"
            raise refusal(("train", "staleness"), found, "0, as exact gradients need the newest weights")
        return self

    @property
    def test_numbers(self) -> list[str]:
        """Names of the numbers that the run's evaluations may have."""
        return [*TEST_NUMBERS, *self.train.named_metrics]

    def replicas_of(self, block: int) -> int:
        """Return the number of data-parallel replicas of a block; the head has one."""
        wanted = self.placement.replicas
        if isinstance(wanted, dict):
            return wanted.get(block, 1)
        return wanted if block < self.model.block_count - 1 else 1

    @property
    def replicas(self) -> list[int]:
        """Data-parallel replicas of every block, in order, of a model that has so many blocks."""
        return [self.replicas_of(block) for block in range(self.model.block_count)]

    @property
    def workers(self) -> int:
        """Processes that hold a block or a replica of one."""
        # Nothing is made for every block here: so far their number is anybody's claim.
        wanted, blocks = self.placement.replicas, self.model.block_count
        more = sum(wanted.values()) - len(wanted) if isinstance(wanted, dict) else (wanted - 1) * (blocks - 1)
        return blocks + more

    def _check_threads(self) -> None:
        wanted, blocks = self.placement.threads_per_block, self.model.block_count
        if not isinstance(wanted, dict):
            return
        for index in (index for index in wanted if index >= blocks):
            expected = f"an index from 0 to {blocks - 1}, as model.blocks makes {blocks}"
            raise refusal(("placement", "threads_per_block", index), f"block {index}", expected)
        if self.feedback.form != "broadcast":
            found = f"a number for each block with feedback.form {self.feedback.form!r}"
            expected = "one number, as the baselines are computed as one network"
            raise refusal(("placement", "threads_per_block"), found, expected)

    def _check_replicas(self) -> None:
        head, wanted = self.model.block_count - 1, self.placement.replicas
        by_block = wanted if isinstance(wanted, dict) else {0: wanted}
        for index, number in by_block.items():
            key: tuple[str | int, ...] = ("placement", "replicas")
            if isinstance(wanted, dict):
                key = (*key, index)
            if index > head:
                expected = f"an index below {head}, that of the head"
                raise refusal(key, f"block {index}", expected)
            if index == head and number > 1:
                hint = "Cut the model into more blocks to make the head smaller." if head else ""
                expected = "1, as the head's loss and projection see every micro-batch of a step"
                raise refusal(key, f"{number} for the head (block {head})", expected, hint)
            if self.train.microbatches % number:
                expected = f"a divisor of train.microbatches ({self.train.microbatches})"
                hint = f"Set train.microbatches to {number} or a multiple of it."
                raise refusal(key, str(number), expected, hint)
            if number > 1 and self.run.on_failure == "rejoin":
                found = "'rejoin' with more than one replica of a block"
                expected = "'restart' or 'fail', as replicas must be alike after every step"
                raise refusal(("run", "on_failure"), found, expected)
