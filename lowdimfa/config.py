"""What a block needs to know to be built: plain data that any front end can fill in.

Each setting is defined here, once: its name, type and default, what it means, and between which bounds it lies. The
specification's sections are made of that (`lowdimfa.services.spec.learning`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from lowdimfa.rules import Q_RULES
from lowdimfa.tickets import Ticket

IGNORED = -100
"""The class that by default says that a target doesn't count, as in torch."""

Form = Literal["broadcast", "backprop", "local", "frozen"]
Precision = Literal["fp32", "bf16"]
Activations = Literal["fp32", "bf16", "int8", "int4"]
Source = Literal["logits", "head_input", "hidden"]
Start = Literal["auto", "random", "identity"]


def setting(default: Any, meaning: str, **bounds: float) -> Any:
    """Return a field of a dataclass.

    Parameters
    ----------
    default
        Its value where none is given.
    meaning
        For the reference of the specification, in Markdown.
    bounds
        ``ge``, ``gt``, ``le``, ``lt``: what a front end checks; nothing here does.
    """
    return field(default=default, metadata={"description": meaning, **bounds})


@dataclass(frozen=True)
class FactoryConfig:
    """What is called, by import path or itself, and the arguments to call it with.

    A `functools.partial` becomes what it calls and its arguments, as if they had been given apart.

    Attributes
    ----------
    key
        Of the specification, for messages; "" where there is none.
    """

    factory: str | Callable[..., Any]
    args: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.factory, partial) and not self.factory.args:
            object.__setattr__(self, "args", {**self.factory.keywords, **self.args})
            object.__setattr__(self, "factory", self.factory.func)

    @property
    def name(self) -> str:
        """What is called, in words: its import path, or that of its definition."""
        return self.factory if isinstance(self.factory, str) else path_of(self.factory)


def path_of(factory: Callable[..., Any]) -> str:
    """Return where a callable, or its class, is defined: the same in every process that has it."""
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"


@dataclass(frozen=True)
class RankConfig:
    """Activations that travel as factors of this rank."""

    rank: int


@dataclass(frozen=True)
class FeedbackConfig:
    """The feedback of a network; the fields are those of the specification's ``feedback`` section.

    `q_rule`, `p_rule` and `tap` are built-in names (`lowdimfa.rules`), import paths of classes derived from
    `lowdimfa.QRule`, `lowdimfa.PRule` and `lowdimfa.Tap`, or such paths with arguments.
    """

    form: Form = setting(
        "broadcast",
        "`broadcast` sends the projected output error to every block at once. `backprop` (exact "
        "gradients), `local` (a small trained head and loss in each block) and `frozen` (only the head learns, the "
        "blocks before it stay as drawn) are baselines.",
    )
    source: Source = setting(
        "logits",
        "The tensor whose error is broadcast: the network's output (`logits`), the input of the head "
        "(`head_input`; the last block's own exact backward pass comes first) or that of the head's output layer, its "
        "last one that has parameters (`hidden`). The last two have the network's width and not that of its output.",
    )
    error_dim: int | None = setting(
        None,
        "Numbers per sample (or token) that the broadcast carries of the error; null means all of the error's "
        "own: with `source: logits` the task's dimension, that is the number of classes or regression targets, else the "
        "width of the hidden state. It can't be larger than that.",
        ge=1,
    )
    broadcast: Precision = setting(
        "fp32",
        "Number format in which the error is broadcast; `bf16` halves that traffic.",
    )
    q_rule: str | FactoryConfig = setting(
        "auto",
        "How a block's feedback weights Q are learned. `readout`: as its own readout, whose error joins "
        "the broadcast one; needs cross-entropy, and where `error_dim` is below the task's `p_rule: fixed` and one more "
        "number per error, that of the class. `hebbian`: from the correlation of its tap with the broadcast error. "
        "`probed`: from that and from noise added to its output in probe micro-batches. `fixed`: not at all. `auto` "
        "takes `readout` where that can be, `fixed` where Q starts as the identity, else `hebbian`. An import path names "
        "a class of your own; [own-rules.md](own-rules.md) has the details, of P and taps too.",
    )
    q_start: Start = setting(
        "auto",
        "Where Q starts: drawn (`random`), or as `Pᵀ` (`identity`), for which a block's tap needs the width of the "
        "error. `auto` takes the identity at each block where `source` isn't `logits` and the widths fit, as on a "
        "residual stream. With `q_rule: fixed` Q stays `Pᵀ` where P learns, which then travels to the blocks whenever it "
        "changes.",
    )
    own_error: float = setting(
        0.5,
        "Share of a block's own error in what is delivered to it (`q_rule: readout`); the rest is the "
        "broadcast error. 1 is greedy local learning.",
        ge=0,
        le=1,
    )
    p_rule: str | FactoryConfig = setting(
        "auto",
        "How the error projection P is learned: not at all (`fixed`), or so that its rows span the "
        "error's leading principal directions: `oja` approaches these step by step, `pca` computes them from a running "
        "correlation. It matters only where `error_dim` is below the error's own; there `auto` takes `pca` if Q is `Pᵀ` "
        "at every block, which then follows P, else `fixed`.",
    )
    p_lr: float = setting(0.1, "Learning rate of Oja's rule, on an error correlation of trace 1.", gt=0)
    p_decay: float = setting(
        0.98, "What a step leaves of the running error correlation (`p_rule: pca`).", ge=0, lt=1
    )
    p_every: int = setting(25, "Optimiser steps between two computations of P (`p_rule: pca`).", ge=1)
    tap: str | FactoryConfig = setting(
        "auto",
        "The function of a block's output at which the error is delivered: the flat output, its "
        "mean over tokens or positions, either of them or a feature map's mean over a grid of at most 8×8 followed by "
        "a layer norm without parameters, or chosen per block from the shape of its output, and never normalised where "
        "Q starts as the identity.",
    )
    every_layer: bool = setting(
        False,
        "Let the error enter a block at the end of each of its layers that has parameters, and no gradient "
        "pass between them: no block then has a backward pass of its own. Otherwise it enters at the block's end.",
    )
    probe_every: int = setting(4, "Optimiser steps between probes (`q_rule: probed`).", ge=1)
    probe_noise: float = setting(
        0.05, "Standard deviation of the probe's noise, as a fraction of the output's own.", gt=0
    )
    probe_decay: float = setting(
        0.99, "What a probe leaves of Q; the rest is taken from the probe's estimate.", ge=0, lt=1
    )

    @property
    def p_rule_or_fixed(self) -> str | FactoryConfig:
        """The rule for P; where it isn't known yet what ``auto`` stands for, the one with which any rule begins."""
        return "fixed" if self.p_rule == "auto" else self.p_rule

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
    grad_clip: float | None = setting(
        None, "Largest norm of a block's update gradient; null means no clipping.", gt=0
    )
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
    metrics
        By name, what evaluations measure beside loss and accuracy: `lowdimfa.metrics`.
    average
        Decay of the moving average of weights with which blocks are evaluated; None for none.
    """

    total_steps: int
    microbatches: int = setting(
        1,
        "Equal parts into which a batch is cut to keep the pipeline of blocks full. `auto` is 1 for "
        "a single block, with staleness `(blocks - 1) / staleness` but no more than 8, else 4, or from 8 blocks on 8; "
        "or what is near to that, divides the batch and suits the replicas. `spec.yaml` of the run has the number.",
        ge=1,
    )
    staleness: int = setting(
        0,
        "Steps by which a forward pass may run ahead of a block's newest update. 0 is the "
        "mathematics of training in one process; 1 or more removes the pipeline's remaining idle time.",
        ge=0,
    )
    seed: int = setting(0, "From it every random draw of the run is derived.", ge=0)
    precision: Precision = setting(
        "fp32", "Number format of the blocks' computation; weights stay in single precision."
    )
    activations: Activations | RankConfig = setting(
        "fp32",
        "Format in which activations go from block to block, in training and in evaluation: `bf16` takes half the bytes, "
        "`int8` a quarter, `int4` less than a seventh, and a mapping with `rank` two factors of that rank, which are as "
        "few bytes as one likes. Each block computes in `precision` all the same. It matters to `form: broadcast`; the "
        "baselines send nothing.",
    )
    compile: bool = setting(
        False,
        "Compile each block's layers with `torch.compile`. It needs a C++ compiler on every node, takes up "
        "to minutes before the first step, and pays for blocks of many small operations.",
    )
    loss: str | Callable[..., Any] = setting(
        "auto",
        "Loss of the head. `auto` is `cross_entropy` for classes and tokens and `mse` (half the "
        "squared error, summed over outputs) for regression; `bce` is the logistic loss. An import path "
        "names a callable that takes outputs and targets and returns the mean over samples.",
    )
    ignore_index: int = setting(
        IGNORED,
        "Class that says that a target doesn't count, such as that of padding. `cross_entropy` leaves it "
        "out; a loss of your own has to, as neither accuracy nor the weights of micro-batches and evaluation batches in "
        "a mean count it.",
    )
    loss_chunk: int | None = setting(
        None,
        "Positions (tokens) of which the head computes outputs and loss at once, in training and in evaluation; null "
        "means all of a micro-batch. The mathematics is the same, in less memory. It needs `cross_entropy`, an output "
        "layer that works position by position, and a `feedback.source` other than `logits`.",
        ge=1,
    )
    update: UpdateConfig = UpdateConfig()
    per_block: Mapping[int, UpdateConfig] = field(default_factory=dict)
    metrics: Mapping[str, FactoryConfig] = field(default_factory=dict)
    average: float | None = None

    def update_of(self, block: int) -> UpdateConfig:
        """Return how the given block applies its gradients."""
        return self.per_block.get(block, self.update)
