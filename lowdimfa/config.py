"""What a block needs to know to be built: plain data that any front end can fill in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lowdimfa.losses import IGNORED
from lowdimfa.rules import Q_RULES
from lowdimfa.tickets import Ticket

Form = Literal["broadcast", "backprop", "local"]


@dataclass(frozen=True)
class FactoryConfig:
    """An import path and the arguments to call it with.

    Attributes
    ----------
    key
        Of the specification, for messages; "" where there is none.
    """

    factory: str
    args: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True)
class FeedbackConfig:
    """The feedback of a network; the fields are those of the specification's ``feedback`` section.

    `q_rule`, `p_rule` and `tap` are built-in names (`lowdimfa.rules`), import paths of classes derived from
    `lowdimfa.QRule`, `lowdimfa.PRule` and `lowdimfa.Tap`, or such paths with arguments.
    """

    form: Form = "broadcast"
    error_dim: int | None = None
    q_rule: str | FactoryConfig = "auto"
    own_error: float = 0.5
    p_rule: str | FactoryConfig = "fixed"
    p_lr: float = 0.1
    tap: str | FactoryConfig = "auto"
    every_layer: bool = False
    probe_every: int = 4
    probe_noise: float = 0.05
    probe_decay: float = 0.99

    @property
    def probe_interval(self) -> int:
        """Steps between probes, or 0 where the rule needs none."""
        if self.form != "broadcast" or self.q_rule == "auto":
            return 0
        return self.probe_every if Q_RULES.find(self.q_rule).probed else 0

    def probes(self, ticket: Ticket) -> bool:
        """Whether this micro-batch carries a probe: the first one of every ``probe_every`` steps."""
        interval = self.probe_interval
        return interval > 0 and ticket.microbatch == 0 and ticket.step % interval == 0


@dataclass(frozen=True)
class UpdateConfig:
    """How one block turns gradients into updates.

    Attributes
    ----------
    clip_key
        The specification's key of ``grad_clip``, for messages.
    """

    optimizer: FactoryConfig = FactoryConfig("torch.optim.AdamW", {"lr": 1e-3})
    scheduler: FactoryConfig | None = None
    grad_clip: float | None = None
    clip_key: str = "train.grad_clip"

    @property
    def optimizer_key(self) -> str:
        """The specification's key of the optimiser, for messages."""
        return self.optimizer.key or "train.optimizer"

    @property
    def rate_key(self) -> str:
        """The specification's key of the learning rate, for messages."""
        return f"{self.optimizer_key}.args.lr"

    @property
    def scheduler_key(self) -> str:
        """The specification's key of the schedule, for messages."""
        return (self.scheduler and self.scheduler.key) or "train.scheduler"


@dataclass(frozen=True)
class TrainingConfig:
    """What is the same for every block of a run, and each block's own `UpdateConfig`.

    Attributes
    ----------
    total_steps
        Optimiser steps of the whole run, for schedulers that need to know.
    staleness
        A block's weights may be up to this many steps newer at a micro-batch's update than they were at its forward.
    activations
        Number format in which activations go from block to block.
    compiled
        Whether each block's layers are compiled by ``torch.compile``.
    ignore_index
        The class that says that a target doesn't count.
    """

    total_steps: int
    microbatches: int = 1
    staleness: int = 0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    activations: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False
    loss: str = "auto"
    ignore_index: int = IGNORED
    update: UpdateConfig = UpdateConfig()
    per_block: Mapping[int, UpdateConfig] = field(default_factory=dict)

    def update_of(self, block: int) -> UpdateConfig:
        """Return how the given block applies its gradients."""
        return self.per_block.get(block, self.update)
