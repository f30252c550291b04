"""Each block's own optimiser, scheduler and gradient clipping."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lowdimfa.config import UpdateConfig
from lowdimfa.errors import InputError, in_words
from lowdimfa.imports import resolve


class Updater:
    """Applies a block's gradients: clip, optimiser step, scheduler step.

    Parameters
    ----------
    parameters
        Everything that the optimiser trains, by the name under which its state is kept.
    clipped
        The parameters whose common gradient norm is clipped; learned feedback weights aren't among them.
    config
        Optimiser, scheduler and clipping of the block.
    total_steps
        Steps of the whole run, given to a scheduler that takes ``total_steps`` and isn't told otherwise.

    Raises
    ------
    InputError
        A factory can't be imported, or refuses its arguments.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        clipped: list[nn.Parameter],
        config: UpdateConfig,
        total_steps: int,
    ) -> None:
        self._names = list(parameters)
        self._trained = list(parameters.values())
        self._clipped = clipped
        self._grad_clip = config.grad_clip
        self.optimizer: Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        if not parameters:  # a block cut so that it has nothing to learn
            return
        where = "train.optimizer"
        factory = resolve(config.optimizer.factory, f"{where}.factory")
        arguments = _fused(factory, self._trained, dict(config.optimizer.args))
        self.optimizer = _call(factory, (self._trained,), arguments, where)
        if config.scheduler is not None:
            where = "train.scheduler"
            factory = resolve(config.scheduler.factory, f"{where}.factory")
            arguments = dict(config.scheduler.args)
            if "total_steps" in inspect.signature(factory).parameters and not arguments.keys() & {
                "total_steps",
                "epochs",
            }:
                arguments["total_steps"] = total_steps
            self.scheduler = _call(factory, (self.optimizer,), arguments, where)
            if isinstance(self.scheduler, ReduceLROnPlateau):
                raise InputError(
                    f"{where}.factory", "a schedule that follows a measured loss", "one that follows steps"
                )

    @property
    def trained(self) -> list[nn.Parameter]:
        """Everything that the optimiser trains, in the order in which it was given."""
        return self._trained

    def step(self) -> None:
        """Apply the gradients, clear them, and move the schedule on."""
        if self.optimizer is None:
            return
        if self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._clipped, self._grad_clip)
        self.optimizer.step()
        # A fused step changes weights behind autograd's back, which then can't refuse a backward that comes too late.
        torch.autograd.graph.increment_version(self._trained)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors as ``<parameter name>/<key>``."""
        return {
            f"{self._names[index]}/{key}": value
            for index, entries in self._state()["state"].items()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        }

    def scalars(self) -> dict[str, Any]:
        """Return what else the optimiser and scheduler remember, as plain data."""
        state = self._state()
        numbers = {
            self._names[index]: {
                key: value for key, value in entries.items() if not isinstance(value, Tensor)
            }
            for index, entries in state["state"].items()
        }
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]
        ]
        scheduler = {} if self.scheduler is None else _plain(self.scheduler.state_dict())
        return {"numbers": numbers, "groups": groups, "scheduler": scheduler}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `scalars` returned; names that aren't this block's are ignored."""
        if self.optimizer is None:
            return
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(self._names):
            entries: dict[str, Any] = dict(scalars.get("numbers", {}).get(name, {}))
            prefix = f"{name}/"
            entries |= {
                key.removeprefix(prefix): _laid_out(value, self._trained[index])
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if entries:
                state[index] = entries
        current = self.optimizer.state_dict()
        groups = [
            group | {key: _like(value, group.get(key)) for key, value in saved.items()}
            for group, saved in zip(current["param_groups"], scalars["groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(scalars["scheduler"]))

    def _state(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": []} if self.optimizer is None else self.optimizer.state_dict()


def _fused(factory: Any, parameters: list[nn.Parameter], arguments: dict[str, Any]) -> dict[str, Any]:
    """Add ``fused=True`` where the optimiser can and nobody chose otherwise: one pass over memory in place of ten."""
    choices = inspect.signature(factory).parameters if inspect.isclass(factory) else {}
    if "fused" not in choices or arguments.keys() & {"fused", "foreach", "differentiable"}:
        return arguments
    fits = all(value.is_floating_point() and value.device.type in ("cpu", "cuda") for value in parameters)
    return arguments | {"fused": True} if fits else arguments


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a state tensor with the parameter's strides: a fused optimiser pairs their values as they lie in memory."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _like(value: Any, current: Any) -> Any:
    """Turn plain data back into what the optimiser had: JSON has lists where it had tuples (such as ``betas``)."""
    return tuple(value) if isinstance(current, tuple) else value


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what plain data can hold; bound functions are rebuilt by the scheduler's own constructor."""
    kinds = (bool, int, float, str, list, tuple, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)}


def _call(factory: Any, positional: tuple[Any, ...], arguments: dict[str, Any], where: str) -> Any:
    try:
        return factory(*positional, **arguments)
    except (Exception, SystemExit) as error:  # a user's factory may fail in any way
        raise InputError(
            f"{where}.args",
            f"{arguments!r} ({in_words(error)})",
            "arguments that the factory accepts",
        ) from error
