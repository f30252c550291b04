"""Planning leaves a model as it was, whatever its forward moves by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lowdimfa.captured import captor
from lowdimfa.cost import Balance
from lowdimfa.errors import InputError
from lowdimfa.partitioning import copies, partition
from lowdimfa.services.trainer.copying import refuse_uncopied
from lowdimfa.unchanged import unchanged


class Moving(nn.Module):
    """Moves all that a forward can: parameters, buffers, attributes, containers, a generator of its own."""

    def __init__(self, width: int, when: str) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("observed", torch.zeros(0))
        self.register_buffer("rebound", torch.zeros(2))
        self.when, self.calls, self.is_set = when, 0, False
        self.seen: list[Tensor] = []
        self.latest: deque[Tensor] = deque(maxlen=2)
        self.by_call: dict[int, Tensor] = {}
        self.draws = torch.Generator()
        self.plain, self.array = torch.zeros(3), numpy.zeros(3)
        self.first = nn.Linear(width, width)
        self.register_forward_pre_hook(lambda module, given: None)
        self.once = self.register_forward_pre_hook(lambda module, given: self.once.remove())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.latest.append(x)
        self.by_call[self.calls] = x
        self.made = torch.rand(1, generator=self.draws)
        self.plain += 1.0
        self.array += 1.0
        self.first = nn.Identity()
        self.rebound = self.rebound + 1
        if not self.observed.numel():
            self.observed.resize_(3).fill_(2.0)
        if not self.is_set and (self.training or self.when == "always"):
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.mul_(0.5)
            self.is_set = True
        return self.scale * (x + self.shift)


class Whole(nn.Module):
    """Has a forward of its own, which planning runs in training mode too."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def state_of(model: nn.Module) -> list[Any]:
    """Return all that a model has: the objects, and what is in them."""
    found: list[Any] = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        contents = [list(value) for value in own.values() if isinstance(value, list | dict | deque)]
        states = [value.get_state() for value in own.values() if isinstance(value, torch.Generator)]
        tables = (module._parameters, module._buffers, module._modules, module._forward_pre_hooks)
        tensors = [id(one) for table in tables for one in table.values()]
        states += [
            one for value in own.values() if isinstance(value, Tensor | numpy.ndarray) for one in [value]
        ]
        found.append(
            (own, [list(map(id, each)) for each in contents], [one.tolist() for one in states], tensors)
        )
    return [*found, {name: value.tolist() for name, value in deepcopy(model.state_dict()).items()}]


@pytest.mark.parametrize("kind", [nn.Sequential, Whole])
@pytest.mark.parametrize("when", ["always", "in training"])
@pytest.mark.parametrize("balance", ["flops", "time"])
def test_planning_moves_nothing_of_a_model(kind: Any, when: str, balance: Balance) -> None:
    model = kind(Moving(8, when), nn.Linear(8, 8), nn.BatchNorm1d(8), Moving(8, when), nn.Linear(8, 3))
    before = state_of(model)
    partition(model, 2, torch.randn(4, 8) + 5.0, balance)
    assert state_of(model) == before


def test_what_a_forward_moves_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Tanh(), Moving(8, "always")), nn.Linear(8, 3))
    (plan,) = partition(model, 1, torch.randn(4, 8))
    assert [flow.moves for flow in plan.flows] == [(), ("1.calls", "1.is_set", "1.scale", "1.shift"), ()]


def test_a_forward_that_fails_is_put_back_too() -> None:
    model = nn.Sequential(Moving(8, "always"), nn.Linear(7, 3))
    before = state_of(model)
    with pytest.raises(RuntimeError), unchanged(model, torch.device("cpu"), training=True):
        model(torch.randn(4, 8))
    assert state_of(model) == before


class Expanded(nn.Module):
    """Has a buffer whose elements are one number, in a buffer that its forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1))
        self.register_buffer("scale", self.one.expand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.one.mul_(2.0)
        return x * self.scale


def test_what_shares_memory_within_itself_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Expanded(), nn.Linear(4, 2))
    partition(model, 2, torch.randn(4, 4))
    assert torch.equal(model[1].one, torch.ones(1)) and torch.equal(model[1].scale, torch.ones(4))
    assert model[1].scale.data_ptr() == model[1].one.data_ptr()


def test_layers_that_are_lazy_are_made_for_good() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    partition(model, 2, torch.randn(4, 5))
    assert [type(one) for one in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model[0].in_features == 5


def closure(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.tanh(linear(x))


class Held(nn.Module):
    """Calls its own part by what an attribute holds."""

    def __init__(self, hold: Callable[[Held], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.held = hold(self)

    def one(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)


SHARED: dict[str, Callable[[Held], Any]] = {
    "function": lambda module: closure(module.linear),
    "of the module": lambda module: lambda x: module.one(x),
    "in a dict": lambda module: {"one": closure(module.linear)},
    "in a partial": lambda module: partial(closure(module.linear)),
    "vmap of a method": lambda module: torch.vmap(module.one),
    "default": lambda module: lambda x, linear=module.linear: linear(x),
}
COPIED: dict[str, Callable[[Held], Any]] = {
    "method": lambda module: module.one,
    "partial of a method": lambda module: partial(module.one),
    "function of nothing": lambda module: torch.tanh,
    "module in a dict": lambda module: {"linear": module.linear},
    "nothing": lambda module: None,
}


@pytest.mark.parametrize("how", [*SHARED, *COPIED])
def test_functions_that_hold_parts_are_found_where_a_copy_would_share_them(how: str) -> None:
    model = nn.Sequential(Held((SHARED | COPIED)[how]), nn.Linear(8, 3))
    assert captor([model]) == ("0" if how in SHARED else None)
    plans = partition(model, 1, torch.randn(4, 8))
    if how in COPIED:
        assert copies(plans)
        return
    with pytest.raises(ValueError, match="holds parts"):
        copies(plans)
    with pytest.raises(InputError, match="a function at '0' that holds parts of the model itself"):
        refuse_uncopied([model])
