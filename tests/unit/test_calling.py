"""How layers are called: what they name comes from the set first, then from the data; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.block_module import BlockModule
from lowdimfa.errors import InputError
from lowdimfa.layers import Layer, list_layers
from lowdimfa.partitioning import partition
from lowdimfa.values import ONE, Value

NAMES = ("a", "b", "c", "d")


def made(takes: list[str], forward: Callable[..., Any]) -> nn.Module:
    """Return a module whose forward has these parameters by name, all optional, and gets them as keywords."""
    names = ", ".join(f"{name}=None" for name in takes)
    scope: dict[str, Any] = {"inner": forward}
    exec(f"def forward(self, {names}): return inner({', '.join(f'{n}={n}' for n in takes)})", scope)
    return type("Made", (nn.Module,), {"forward": scope["forward"]})()  # type: ignore[no-any-return]


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.sets(st.sampled_from(NAMES)),
    st.dictionaries(st.sampled_from(NAMES), st.booleans(), min_size=1),
)
def test_a_layer_gets_what_it_names_of_the_set_before_the_data(
    takes: list[str], in_set: set[str], returned: dict[str, bool]
) -> None:
    side = {name: torch.tensor([1.0]) for name in NAMES}
    stream: Value = {name: torch.tensor([2.0]) for name in sorted(in_set)}
    seen: dict[str, Any] = {}

    def forward(**given: Any) -> dict[str, Tensor | None]:
        seen.update(given)
        return {name: torch.tensor([3.0]) if there else None for name, there in returned.items()}

    module = BlockModule([Layer("it", made(takes, forward))])
    expected = dict.fromkeys(in_set, 2.0) | dict.fromkeys(returned, 3.0)
    expected = {name: value for name, value in expected.items() if returned.get(name, True)}
    if not expected:
        with pytest.raises(InputError, match="later layers take nothing"):
            module(stream, side)
        return
    found = module(stream, side)
    assert {name: float(value) for name, value in seen.items()} == {
        n: 2.0 if n in in_set else 1.0 for n in takes
    }
    assert {name: float(value) for name, value in found.items()} == expected
    assert list(found) == sorted(expected)


def test_one_tensor_goes_to_the_first_parameter_whatever_its_name() -> None:
    module = BlockModule([Layer("it", made(["a", "b"], lambda a, b: a * 10 + b))])
    x, side = torch.tensor([2.0]), {"a": torch.tensor([7.0]), "b": torch.tensor([1.0])}
    assert float(module(x, side)) == 21.0
    assert float(module({}, side)) == 71.0


def test_a_set_goes_on_to_the_layers_that_name_its_members() -> None:
    begin = made(["a"], lambda a: {"hidden": a, "rotary": a + 1, "unused": a})
    middle = made(["hidden", "rotary"], lambda hidden, rotary: hidden + rotary)
    model = nn.Sequential(begin, middle, middle, made(["hidden"], lambda hidden: hidden * 2))
    layers = list_layers(model)
    a = torch.tensor([[1.0]])
    assert [list(BlockModule(layers[:n])({}, {"a": a})) for n in (1, 2)] == [["hidden", "rotary"]] * 2
    after_the_last_that_names_it = BlockModule(layers[:3])({}, {"a": a})
    assert isinstance(after_the_last_that_names_it, Tensor)
    assert float(BlockModule(layers)({}, {"a": a})) == 10.0
    plans = partition(model, ["1", "3"], {"a": torch.ones(2, 1)})
    assert [list(plan.inputs) for plan in plans] == [[], ["hidden", "rotary"], [ONE]]


class Stars(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] + 0.0


class Keywords(nn.Module):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        assert not kwargs
        return hidden_states + 0.0


class Writes(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.mul_(0.5)


class Double(nn.Linear):
    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        return super().forward(input * mask)


FIRST = made(["x"], lambda x: x)
EXAMPLE = {"x": torch.rand(2, 3), "mask": torch.ones(2, 3)}
REFUSED: dict[str, tuple[list[nn.Module], Any, str]] = {
    "a tuple": ([made(["x"], lambda x: (x, x))], EXAMPLE, "'0', which puts out a tuple; .* return {'hidden"),
    "a tuple of one tensor": ([made(["x"], lambda x: (x, x))], EXAMPLE["x"], "'0', which puts out a tuple"),
    "a member that is none": (
        [made(["x"], lambda x: {"x": x, "y": 3}), made(["x", "y"], lambda x, y: x)],
        EXAMPLE,
        "a dict whose 'y' is of type int",
    ),
    "*args": (
        [FIRST, Stars()],
        EXAMPLE,
        r"layer '1', whose forward takes \*args; expected a forward that names",
    ),
    "a parameter that nothing gives": (
        [FIRST, Double(3, 3), nn.Bilinear(3, 3, 3)],
        EXAMPLE,
        "'2', .* needs 'input2'",
    ),
    "no name that is there": (
        [nn.Linear(3, 3), Double(3, 3)],
        EXAMPLE,
        "'0', whose forward needs 'input'; .* 'mask', 'x'",
    ),
    "a name that no layer takes": (
        [FIRST, nn.Linear(3, 3)],
        EXAMPLE,
        "data.factory: found the input 'mask', which no",
    ),
    "writing to the data": ([FIRST, Writes()], EXAMPLE, "'1', which writes in place to the input 'mask'"),
    "a set at the end": (
        [FIRST, made(["x", "mask"], lambda x, mask: {"x": x})],
        EXAMPLE,
        "later layers take nothing",
    ),
    "a failing layer": ([FIRST, Double(5, 5)], EXAMPLE, "layer '1', which fails on the output of layer '0'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_when_the_network_is_cut(kind: str) -> None:
    layers, example, message = REFUSED[kind]
    with pytest.raises(InputError, match=message) as refusal:
        partition(layers, 1, example)
    assert refusal.value.exit_code == 2


def test_stars_are_as_ever_without_names_and_keywords_get_nothing() -> None:
    assert partition([nn.Linear(3, 3), Stars()], 1, torch.rand(2, 3))
    assert partition([FIRST, Double(3, 3), Keywords()], 1, EXAMPLE)


class Whole(nn.Module):
    """Its own forward takes the data as it likes."""

    def __init__(self, forward: str) -> None:
        super().__init__()
        self.layers, self.kind = nn.ModuleList([FIRST, Double(3, 3), nn.Linear(3, 2)]), forward

    def _run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(x) * 0.5 if mask is None else mask
        output: Tensor = self.layers[2](self.layers[1](self.layers[0](x), mask))
        return output


class ByName(Whole):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return self._run(x, mask)


class AtOnce(Whole):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self._run(batch["x"], batch["mask"])


class Ignores(Whole):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._run(x, None)


@pytest.mark.parametrize("kind", [ByName, AtOnce])
def test_the_models_own_forward_is_called_by_name_or_with_all(kind: type[Whole]) -> None:
    assert len(partition(kind("it"), 2, EXAMPLE)) == 2


def test_a_forward_that_uses_a_mask_otherwise_is_refused() -> None:
    with pytest.raises(InputError, match="a Ignores whose layers, run in order, don't compute"):
        partition(Ignores("it"), 2, EXAMPLE)
