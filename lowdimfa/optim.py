"""Each block's own optimiser, scheduler and gradient clipping."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lowdimfa.average import Average
from lowdimfa.config import FactoryConfig, UpdateConfig
from lowdimfa.encoding import State
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.imports import resolve
from lowdimfa.muon import Muon
from lowdimfa.optim_state import laid_out, load_state, pack_state, schedule_text, settings_of
from lowdimfa.tickets import derive_seed

FOLLOWS_A_LOSS = "a schedule that follows a measured loss", "one that follows steps"
"""What is found of `ReduceLROnPlateau`, and what was expected: blocks measure no loss."""

_OF_OPTIMISERS = ("param_groups", "step", "zero_grad", "state_dict", "load_state_dict")
_OF_SCHEDULES = ("step", "state_dict", "load_state_dict")

_FUSED: Mapping[Any, Sequence[str]] = dict.fromkeys(
    (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, Muon), ("cpu", "cuda")
) | {torch.optim.Adagrad: ("cpu",)}
"""Optimisers that can make a step in one pass, and on which devices every supported torch lets them."""


class Updater:
    """Applies a block's gradients: clip, optimiser step, scheduler step.

    Parameters
    ----------
    parameters
        Everything that the optimiser is given to train, by the name under which its state is kept.
    clipped
        The parameters whose common gradient norm is clipped; learned feedback weights aren't among them.
    config
        Optimiser, scheduler and clipping of the block.
    total_steps
        Steps of the whole run, given to a scheduler that takes ``total_steps`` and isn't told otherwise.
    seed
        For factories that draw random numbers: they draw the same in every process.
    kinds
        What each of the parameters is, as `lowdimfa.kinds.kinds_of` says; given to an optimiser that takes ``kinds``.
    average
        Follows the parameters.

    Attributes
    ----------
    sparse
        Whether there were sparse gradients, as those of ``nn.Embedding(sparse=True)``.
    built, schedule
        Settings of the optimiser's groups, and what the schedule was told, before the first step.

    Raises
    ------
    InputError
        A factory can't be imported, refuses its arguments, or makes something else than what it should.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        clipped: list[nn.Parameter],
        config: UpdateConfig,
        total_steps: int,
        seed: int = 0,
        kinds: Mapping[str, str] | None = None,
        average: Average | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._clipped = clipped
        self.config = config
        self._seed = seed
        self.average = average
        self._kinds = {name: (kinds or {}).get(name, "other") for name in parameters}
        self._chosen: dict[str, Any] = {}
        self.sparse = False
        self.optimizer: Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        self.built, self.schedule = State({}, {}), ""
        if not parameters:  # a block cut so that it has nothing to learn
            return
        for parameter in parameters.values():  # of whatever was done with the model before
            parameter.grad = None
        self.optimizer = self._make_optimizer()
        self.built = settings_of(self)
        if config.scheduler is not None:
            self.scheduler = self._make_scheduler(config.scheduler, total_steps)
            self.schedule = schedule_text(self)
        pack_state(self)  # refuses what has no state that can be kept

    def _make_optimizer(self) -> Optimizer:
        where, given = self.config.optimizer_key, self.config.optimizer
        factory = resolve(given.factory, f"{where}.factory")
        self._chosen = _fused(factory, self.trained, given.args)
        if factory is torch.optim.SGD and given.args.get("fused") and any(map(_is_half, self.trained)):
            raise InputError(
                f"{where}.args",
                "fused: true for parameters of half precision on a processor",
                "fused: false",
                "There torch's fused SGD leaves most values as they are (pytorch#191763).",
            )
        filled = dict(self._chosen)
        if "kinds" in _signature(factory):
            filled["kinds"] = self._kinds
        made = self._call(factory, self.trained, given, filled, where)
        _require(made, _OF_OPTIMISERS, "an optimiser", given.name, where)
        if callable(getattr(made, "train", None)) and callable(getattr(made, "eval", None)):
            raise InputError(
                f"{where}.factory",
                f"{given.name!r}, which has other weights for evaluation, between its eval() and train()",
                "an optimiser whose weights are those of evaluations and checkpoints, too",
                "train.average evaluates a moving average of the weights.",
            )
        self._refuse_without_feedback(made, given, where)
        needed = [one for one in _signature(made.step).values() if one.default is inspect.Parameter.empty]
        if any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in needed):
            raise InputError(
                f"{where}.factory",
                f"{given.name!r}, whose step needs the argument {needed[0].name!r}",
                "an optimiser whose step takes the gradients as they are",
                "One that evaluates the loss again, such as LBFGS, can't train blocks that learn apart.",
            )
        return made  # type: ignore[no-any-return]

    def _refuse_without_feedback(self, made: Any, given: FactoryConfig, where: str) -> None:
        held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
        lost = [
            name
            for name, parameter in self._parameters.items()
            if self._kinds[name] == "feedback" and id(parameter) not in held
        ]
        if lost:
            raise InputError(
                f"{where}.factory",
                f"{given.name!r}, which leaves out the feedback weights {', '.join(map(repr, lost))}",
                "an optimiser of all that its block learns: without them it would hear an error that means nothing",
                "To leave feedback as it starts, set feedback.q_rule to fixed.",
            )

    def _make_scheduler(self, given: FactoryConfig, total_steps: int) -> LRScheduler:
        where = self.config.scheduler_key
        factory = resolve(given.factory, f"{where}.factory")
        spans = "total_steps" in _signature(factory) and not given.args.keys() & {"total_steps", "epochs"}
        filled = {"total_steps": total_steps} if spans else {}
        made = self._call(factory, self.optimizer, given, filled, where)
        _require(made, _OF_SCHEDULES, "a schedule", given.name, where)
        if isinstance(made, ReduceLROnPlateau):
            raise InputError(f"{where}.factory", *FOLLOWS_A_LOSS)
        return made  # type: ignore[no-any-return]

    def _call(
        self,
        factory: Callable[..., Any],
        subject: Any,
        given: FactoryConfig,
        filled: dict[str, Any],
        where: str,
    ) -> Any:
        try:
            with reproducible(derive_seed(self._seed, where)):
                return factory(subject, **deepcopy({**filled, **given.args}))  # all blocks have the same ones
        except (Exception, SystemExit) as error:  # a user's factory may fail in any way
            arguments = f"{dict(given.args)!r}" if given.args else "no arguments"
            raise InputError(
                f"{where}.args",
                f"{arguments} ({in_words(error)})",
                "arguments that the factory accepts",
            ) from error

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Everything that the optimiser was given, by name; it may have left some of it out."""
        return self._parameters

    @property
    def trained(self) -> list[nn.Parameter]:
        """Everything that the optimiser was given, in that order."""
        return list(self._parameters.values())

    def step(self) -> None:
        """Apply the gradients, clear them, and move the schedule on."""
        if self.optimizer is None:
            return
        if (clip := self.config.grad_clip) is not None:
            torch.nn.utils.clip_grad_norm_(self._clipped, clip)
        self.apply()
        self.advance()
        if self.average is not None:
            self.average.step()

    def apply(self) -> None:
        """Let the optimiser apply the gradients, and clear them."""
        assert self.optimizer is not None
        sparse = [group for group in self.optimizer.param_groups if _has_sparse(group)]
        self.sparse = self.sparse or bool(sparse)
        groups = self.optimizer.param_groups if self._chosen else []
        apart = [one for one in groups if _has_sparse(one) or _has_gaps(one) or self._begins_late(one)]
        for parameter in self._parameters.values():  # a fused step pairs values as they lie in memory
            if parameter.grad is not None and not parameter.grad.is_sparse:
                parameter.grad = laid_out(parameter.grad, parameter)
        for group in apart:  # no fused step takes these: let torch choose
            group["fused"] = None
        try:
            self.optimizer.step()
        finally:
            for group in apart:  # as in all other blocks, with which this one may be resumed
                group |= self._chosen
        # A fused step changes weights behind autograd's back, which then can't refuse a backward that comes too late.
        torch.autograd.graph.increment_version(self.trained)
        self.optimizer.zero_grad()
        for parameter in self._parameters.values():  # some of which the optimiser may have left out
            parameter.grad = None

    def _begins_late(self, group: Mapping[str, Any]) -> bool:
        """Return whether some parameters have their first gradient, others not: fused, torch's SGD fails then."""
        assert self.optimizer is not None
        if not group.get("momentum"):
            return False
        states = [self.optimizer.state.get(one, {}) for one in group["params"] if one.grad is not None]
        return len({state.get("momentum_buffer") is not None for state in states}) > 1

    def advance(self) -> None:
        """Move the schedule on."""
        if self.scheduler is not None:
            self.scheduler.step()

    def state(self) -> State:
        """Return the state: see `lowdimfa.optim_state.pack_state`; and that of the average."""
        state = pack_state(self)
        if self.average is None:
            return state
        averages, notes = self.average.state()
        return State(state.tensors | averages, state.scalars | notes)

    def load(self, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
        """Restore a state: see `lowdimfa.optim_state.load_state`."""
        load_state(self, tensors, scalars)
        if self.average is not None:
            self.average.load(tensors, *scalars)


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in ones don't tell
        return {}


def _fused(
    factory: Callable[..., Any], parameters: list[nn.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``fused=True`` where the optimiser can and nobody chose otherwise: one pass over memory in place of ten.

    Of other classes it isn't known what they make of it, whatever they call their arguments. On a processor torch's
    fused SGD leaves most values of half precision as they are (pytorch#191763).
    """
    devices = _FUSED.get(factory, ()) if inspect.isclass(factory) else ()
    if given.keys() & {"fused", "foreach", "differentiable"}:
        return {}
    fits = all(value.is_floating_point() and value.device.type in devices for value in parameters)
    is_wrong = factory is torch.optim.SGD and any(map(_is_half, parameters))
    return {"fused": True} if fits and not is_wrong else {}


def _is_half(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.dtype in (torch.float16, torch.bfloat16)


def _has_sparse(group: Mapping[str, Any]) -> bool:
    return any(one.grad is not None and one.grad.is_sparse for one in group["params"])


def _has_gaps(group: Mapping[str, Any]) -> bool:
    """Whether there are parameters between whose values others may lie, as in a slice of a table of columns."""
    return any(
        not one.is_contiguous() and torch.empty_like(one, device="meta").stride() != one.stride()
        for one in group["params"]
    )


def _require(made: object, names: tuple[str, ...], what: str, factory: str, where: str) -> None:
    lacking = [name for name in names if not hasattr(made, name)]
    if lacking:
        raise InputError(
            f"{where}.factory",
            f"{factory!r}, which returned a {type(made).__name__} without {', '.join(lacking)}",
            f"{what} as those of torch",
        )
