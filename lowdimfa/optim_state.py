"""The state of a block's optimiser and schedule, kept by parameter name, so that it fits blocks of any cut."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowdimfa.encoding import Encoder, State, decode, references, same
from lowdimfa.errors import InputError
from lowdimfa.imports import resolve

if TYPE_CHECKING:
    from lowdimfa.config import FactoryConfig
    from lowdimfa.optim import Updater

_STRUCTURE = ("params", "param_names")
"""Entries of a parameter group that say what is in it; a newly built optimiser has its own."""

_ANEW = "Resume with {}, or begin a new run with the weights of this one (lowdimfa export, model.weights)."
_PLANNED = {"lr", "initial_lr", "momentum", "betas"}
"""Settings that schedules change."""

_RATES = ("base_lrs", "_last_lr")
"""What a schedule has from its optimiser."""

_RESUMED = "one that follows from the checkpoint"


def settings_of(updater: Updater) -> State:
    """Return the settings of an optimiser's groups, to be kept: what the specification says, before any schedule."""
    encoder = Encoder(f"{updater.config.optimizer_key}.factory")
    own = next(iter(updater.parameters))
    groups = [
        encoder.encode(_settings(group), "optimizer", f"built group {place} with {own}")
        for place, group in enumerate(_saved(updater)["param_groups"])
    ]
    return State(_copies(encoder), {"groups": groups})


def schedule_text(updater: Updater) -> str:
    """Return what a new schedule has been told, as text in which all ways of writing the same are one.

    Arguments that text can't hold, such as functions with a state of their own, are told by the state that the schedule
    begins with.
    """
    given, scheduler = updater.config.scheduler, updater.scheduler
    if given is None or scheduler is None:
        return ""
    try:
        return json.dumps(_loose(given.args), sort_keys=True)
    except TypeError:
        encoder = Encoder(f"{updater.config.scheduler_key}.factory")
        state = {key: value for key, value in scheduler.state_dict().items() if key not in _RATES}
        return json.dumps(
            _loose(encoder.encode(state, "scheduler", next(iter(updater.parameters)))), sort_keys=True
        )


def _defaults(given: FactoryConfig) -> dict[str, Any]:
    try:
        parameters = inspect.signature(resolve(given.factory, "")).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (str, int, float, bool, list, tuple, type(None))
    return {one.name: _loose(one.default) for one in parameters if isinstance(one.default, plain)}


def _copies(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in encoder.tensors.items()}


def pack_state(updater: Updater) -> State:
    """Return everything that a block's optimiser and schedule remember.

    Returns
    -------
    tensors
        By the names with which the plain data refers to them, ``optimizer/<parameter>/<key>`` and the like.
    scalars
        ``parameters``: what the optimiser keeps of each parameter, by name. ``groups``: the names in each parameter
        group, and its settings now and as they were built. ``rest``: what else it keeps. ``scheduler``: the schedule's
        state. ``factories``, ``schedule``: of what these are the state, and the schedule's arguments.

    Raises
    ------
    InputError
        The optimiser trains what isn't the block's, or something of the state can't be kept.
    """
    optimizer, scheduler, config = updater.optimizer, updater.scheduler, updater.config
    if optimizer is None:
        return State({}, {})
    key = f"{config.optimizer_key}.factory"
    saved = _saved(updater)
    names = _names(updater, saved)
    own = next(iter(updater.parameters))  # names what belongs to the block as a whole
    built = updater.built.scalars["groups"]
    encoder = Encoder(key)
    state = saved.get("state", {})
    parameters = {
        names[number]: encoder.encode(entries, "optimizer", names[number])
        for number, entries in state.items()
        if number in names
    }
    rest = {name: value for name, value in saved.items() if name not in ("state", "param_groups")}
    if others := {number: entries for number, entries in state.items() if number not in names}:
        rest["state"] = others
    groups = [
        {
            "names": [names[number] for number in group["params"]],
            "settings": encoder.encode(_settings(group), "optimizer", f"group {place} with {own}"),
            "built": built[place] if place < len(built) else None,  # of one that was added later
        }
        for place, group in enumerate(saved["param_groups"])
    ]
    kept_rest = encoder.encode(rest, "optimizer", f"rest with {own}")
    of_schedule = Encoder(f"{config.scheduler_key}.factory")
    schedule = None if scheduler is None else of_schedule.encode(scheduler.state_dict(), "scheduler", own)
    scalars = {
        "parameters": parameters,
        "groups": groups,
        "rest": kept_rest,
        "scheduler": schedule,
        "factories": _factories(updater),
        "schedule": updater.schedule,
    }
    return State(encoder.tensors | of_schedule.tensors | updater.built.tensors, scalars)


def load_state(updater: Updater, tensors: Mapping[str, Tensor], scalars: Sequence[Mapping[str, Any]]) -> None:
    """Restore a state that `pack_state` returned.

    Parameters
    ----------
    updater
        As it was built.
    tensors
        Of the state; others are ignored. They may become the optimiser's own.
    scalars
        Of the block, or where the blocks were cut otherwise of each block that had some of the parameters.

    Settings that were built otherwise than those of the state are what the user has changed: these are taken, unless a
    schedule has planned its course from the old ones.

    Raises
    ------
    InputError
        The state is that of another optimiser or schedule, or of a schedule with other arguments or from another
        learning rate; or blocks that are now one had different settings.
    """
    if updater.optimizer is None:
        return
    mine = set(updater.parameters)
    scalars = [state for state in scalars if state]
    scalars = [state for state in scalars if mine.intersection(*[_names_in(state)])] or scalars
    if not scalars:
        key, own = f"{updater.config.optimizer_key}.factory", next(iter(updater.parameters))
        raise InputError(key, f"a checkpoint in which {own} was not trained", "the state of an optimiser")
    _require_same_factories(updater, scalars)
    _Restoring(updater, tensors, scalars).run()


class _Restoring:
    """One restoring of an optimiser and its schedule."""

    def __init__(
        self, updater: Updater, tensors: Mapping[str, Tensor], scalars: Sequence[Mapping[str, Any]]
    ) -> None:
        assert updater.optimizer is not None
        self._updater, self._optimizer = updater, updater.optimizer
        self._tensors, self._scalars = tensors, scalars
        self._fresh = _saved(updater)
        self._names = _names(updater, self._fresh)
        grouped = [
            [self._names[number] for number in group["params"]] for group in self._fresh["param_groups"]
        ]
        self._grouped = grouped
        self._as_it_was = len(scalars) == 1 and grouped == [group["names"] for group in scalars[0]["groups"]]

    def run(self) -> None:
        entries = {
            name: data
            for state in self._scalars
            for name, data in state["parameters"].items()
            if name in self._updater.parameters
        }
        kept = {number: (name, entries[name]) for number, name in self._names.items() if name in entries}
        rest = self._rest()
        begun = self._begun()
        state = (
            begun | {number: self._entries(*found) for number, found in kept.items()} | rest.pop("state", {})
        )
        groups = [self._group(place) for place in range(len(self._grouped))]
        loaded = rest | {"param_groups": groups} | ({"state": state} if "state" in self._fresh else {})
        self._optimizer.load_state_dict(loaded)
        self._undo_casts(kept, begun)
        if (scheduler := self._updater.scheduler) is not None:
            states = [state["scheduler"] for state in self._scalars]
            where = f"{self._updater.config.scheduler_key}.factory"
            current = scheduler.state_dict()
            agreed = self._agreed(states, current, where, "schedules in different states")
            self._require_same_schedule()
            scheduler.load_state_dict(agreed)

    def _begun(self) -> dict[Any, Any]:
        """Return what an optimiser keeps from its construction on of parameters that no checkpoint has."""
        trained = set().union(*map(_names_in, self._scalars))
        fresh = self._fresh.get("state", {})
        return {
            number: fresh[number]
            for number, name in self._names.items()
            if number in fresh and name not in trained
        }

    def _entries(self, name: str, data: Any, current: Any = None) -> Any:
        """Return what is kept of a parameter; a fused optimiser pairs values as they lie in memory."""
        parameter = self._updater.parameters[name]
        tensors = {one: laid_out(self._tensors[one], parameter) for one in references(data)}
        return decode(data, tensors, current)

    def _undo_casts(self, kept: Mapping[Any, tuple[str, Any]], begun: Mapping[Any, Any]) -> None:
        """Put right what torch turned into the parameter's type of number, or took for a list of numbers."""
        state = getattr(self._optimizer, "state", {})
        for number, name in self._names.items():
            parameter = self._updater.parameters[name]
            if parameter not in state or not (number in kept or number in begun):
                continue
            exact = (
                self._entries(*kept[number], state[parameter]) if number in kept else deepcopy(begun[number])
            )
            if not _alike(exact, state[parameter]):
                state[parameter] = exact

    def _group(self, place: int) -> dict[str, Any]:
        """Return a group for the optimiser to load, with the settings that its parameters had."""
        fresh, names = self._fresh["param_groups"][place], set(self._grouped[place])
        everywhere = [(at, group) for state in self._scalars for at, group in enumerate(state["groups"])]
        here = [(at, group) for at, group in everywhere if at == place]
        if self._as_it_was:
            found = here
        else:  # those that had its parameters; without any in a checkpoint, those in the same place
            found = [(at, group) for at, group in everywhere if names & set(group["names"])] or here
            # A schedule keeps what belongs to a group by the group's place alone.
            as_many = all(len(state["groups"]) == len(self._grouped) for state in self._scalars)
            aligned = as_many and all(at == place for at, _ in found)
            if self._updater.scheduler is not None and found and not aligned:
                raise self._refused("parameters in other groups than before", "the groups of the checkpoint")
        if not found:
            raise LookupError(f"no settings for the group of {self._grouped[place]}")
        where = f"{self._updater.config.optimizer_key}.factory"
        settings = [group["settings"] for _, group in found]
        mixed = "one group of parameters that had different settings"
        agreed: dict[str, Any] = self._agreed(settings, _settings(fresh), where, mixed)
        built = [group["built"] for _, group in found]
        if None in built or place >= len(self._updater.built.scalars["groups"]):
            return dict(fresh) | agreed
        return (
            dict(fresh) | agreed | self._changed(place, self._agreed(built, _settings(fresh), where, mixed))
        )

    def _changed(self, place: int, then: dict[str, Any]) -> dict[str, Any]:
        """Return those of a group's settings that the specification has otherwise than it had."""
        own = self._updater.built
        now = decode(own.scalars["groups"][place], own.tensors, _settings(self._fresh["param_groups"][place]))
        # What another release has beside is no change of the user's.
        changed = {
            key: value
            for key, value in now.items()
            if key in then and not same(_loose(value), _loose(then[key]))
        }
        if planned := sorted(_PLANNED & changed.keys() if self._updater.scheduler is not None else ()):
            key = planned[0]
            raise InputError(
                f"{self._updater.config.optimizer_key}.args",
                f"{key} {now[key]!r} in a run that is resumed",
                f"{then.get(key)!r}, from which its schedule has planned its course",
                _ANEW.format("that"),
            )
        return changed

    def _require_same_schedule(self) -> None:
        now, given = self._updater.schedule, self._updater.config.scheduler
        left_out = _defaults(given) if given is not None else {}
        for then in (state["schedule"] for state in self._scalars):
            # Defaults written out are no change; what another release has as defaults is none either.
            if left_out | json.loads(then or "{}") != left_out | json.loads(now or "{}"):
                raise InputError(
                    f"{self._updater.config.scheduler_key}.args",
                    f"{now} in a run that is resumed",
                    f"{then}, from which its schedule has planned its course",
                    _ANEW.format("those"),
                )

    def _rest(self) -> dict[str, Any]:
        current = {
            name: value for name, value in self._fresh.items() if name not in ("state", "param_groups")
        }
        where = f"{self._updater.config.optimizer_key}.factory"
        states = [state["rest"] for state in self._scalars]
        rest: dict[str, Any] = self._agreed(states, current, where, "optimisers in different states")
        by_place = any(isinstance(value, dict | list) for state in states for value in state.values())
        if by_place and not self._as_it_was:
            found = f"a state of the whole block ({', '.join(map(str, rest))}) beside those of its parameters"
            raise self._refused(found, "what is kept by parameter, since the blocks are cut otherwise")
        return rest

    def _agreed(self, states: Sequence[Any], current: Any, where: str, different: str) -> Any:
        """Return what all blocks' states say."""
        first, *others = (decode(state, self._tensors, current) for state in states)
        if not all(same(first, other) for other in others):
            raise self._refused(different, _RESUMED, where)
        return first

    def _refused(self, found: str, expected: str, where: str = "") -> InputError:
        return InputError(
            where or f"{self._updater.config.optimizer_key}.factory",
            f"{found}, in the block with {next(iter(self._updater.parameters))}",
            expected,
            "What is kept of groups and schedules fits optimisers that are built with the same groups and settings: keep "
            "these and the block boundaries as they were, and make no groups later.",
        )


def _saved(updater: Updater) -> dict[str, Any]:
    """Return the optimiser's own state dict."""
    saved = updater.optimizer.state_dict()  # type: ignore[union-attr]
    if not isinstance(saved, Mapping) or "param_groups" not in saved:
        raise InputError(
            f"{updater.config.optimizer_key}.factory",
            f"{updater.config.optimizer.name!r}, whose state_dict has no 'param_groups'",
            "an optimiser whose state is by parameter, as those of torch",
        )
    return dict(saved)


def _names(updater: Updater, saved: Mapping[str, Any]) -> dict[Any, str]:
    """Return the names of the parameters by the numbers that a state dict has for them, in the order of the groups."""
    own = {id(parameter): name for name, parameter in updater.parameters.items()}
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    trained = [one for group in updater.optimizer.param_groups for one in group["params"]]  # type: ignore[union-attr]
    strange = [one for one in trained if id(one) not in own]
    if strange or len(numbers) != len(trained):
        shapes = f"a tensor of shape {tuple(strange[0].shape)}" if strange else "something"
        raise InputError(
            f"{updater.config.optimizer_key}.factory",
            f"an optimiser that trains {shapes} of its own",
            "one that trains the parameters that it is given, or some of them",
        )
    return {number: own[id(one)] for number, one in zip(numbers, trained, strict=True)}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _STRUCTURE}


def _loose(value: Any) -> Any:
    """Return a setting in which tuples are lists and integers are floats, as files have them."""
    if isinstance(value, Mapping):
        return {str(key): _loose(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_loose(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _names_in(state: Mapping[str, Any]) -> set[str]:
    return {name for group in state["groups"] for name in group["names"]}


def _factories(updater: Updater) -> list[str | None]:
    scheduler = updater.config.scheduler
    return [updater.config.optimizer.name, None if scheduler is None else scheduler.name]


def _require_same_factories(updater: Updater, scalars: Sequence[Mapping[str, Any]]) -> None:
    keys = updater.config.optimizer_key, updater.config.scheduler_key
    for state in scalars:
        for key, now, then in zip(keys, _factories(updater), state["factories"], strict=True):
            if now != then:
                raise InputError(
                    f"{key}.factory",
                    f"{now!r} in a run that is resumed",
                    f"{then!r}, as when its checkpoint was written",
                )


def _alike(exact: object, loaded: object) -> bool:
    try:
        return same(exact, loaded)
    except InputError:  # torch made something of it that can't be kept
        return False


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a state tensor, or a gradient, with the parameter's strides."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
