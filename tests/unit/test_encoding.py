"""States as plain data and tensors: what can be kept comes back exactly, and the rest is refused by name."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.encoding import Encoder, decode, references, same
from lowdimfa.errors import InputError


def round_trip(value: object, current: object = None) -> Any:
    encoder = Encoder("train.optimizer.factory")
    text = json.dumps(encoder.encode(value, "state"), allow_nan=False)
    data = json.loads(text)
    assert set(references(data)) == encoder.tensors.keys()
    return decode(data, {name: tensor.clone() for name, tensor in encoder.tensors.items()}, current)


keys = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=3)
leaves = (
    keys
    | st.complex_numbers()
    | st.sampled_from(
        [torch.float32, torch.bfloat16, torch.device("cpu"), torch.Size([2, 3]), range(1, 9, 2)]
    )
    | st.sampled_from([numpy.float64(0.1), numpy.int8(-3), numpy.bool_(True), numpy.float32("nan")])
    | st.sampled_from([numpy.arange(6, dtype=">i2").reshape(2, 3), numpy.array(2.5), numpy.zeros((0, 2))])
    | st.builds(
        lambda dtype: torch.arange(6).reshape(2, 3).to(dtype), st.sampled_from([torch.int64, torch.bfloat16])
    )
    | st.builds(lambda shape: torch.randn(shape), st.lists(st.integers(0, 3), max_size=3))
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hashable = keys | st.tuples(keys, keys)
    return (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.dictionaries(st.text(max_size=3).map("$".__add__), inner, max_size=2)
        | st.builds(OrderedDict, st.dictionaries(hashable, inner, max_size=3))
        | st.builds(lambda items: defaultdict(list, items), st.dictionaries(keys, inner, max_size=2))
        | st.builds(lambda items: defaultdict(None, items), st.dictionaries(keys, inner, max_size=2))
        | st.builds(Counter, st.dictionaries(keys, st.integers(), max_size=3))
        | st.builds(lambda items: deque(items, 5), st.lists(inner, max_size=3))
        | st.sets(hashable, max_size=3)
        | st.frozensets(hashable, max_size=3)
    )


def equal(one: Any, other: Any) -> bool:
    """Written apart from `same`, which rests on the encoding itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()
    if isinstance(one, numpy.ndarray | numpy.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return equal(one.real, other.real) and equal(one.imag, other.imag)
    if isinstance(one, dict):
        factories = getattr(one, "default_factory", None), getattr(other, "default_factory", None)
        return factories[0] is factories[1] and equal(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return equal(sorted(one, key=repr), sorted(other, key=repr))
    if isinstance(one, list | tuple | deque):
        extent = getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        return extent and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@given(st.recursive(leaves, nested, max_leaves=8))
def test_what_a_state_holds_comes_back_exactly(value: object) -> None:
    back = round_trip(value)
    assert equal(value, back)
    assert same(value, back)


def test_what_shares_a_tensor_goes_on_sharing_it() -> None:
    tensor = torch.ones(3)
    back = round_trip({"now": tensor, "best": [tensor]})
    assert back["now"] is back["best"][0]


def test_a_parameter_stays_one() -> None:
    back = round_trip({"shadow": nn.Parameter(torch.ones(2), requires_grad=False)})["shadow"]
    assert isinstance(back, nn.Parameter) and not back.requires_grad and back.tolist() == [1, 1]


def test_names_that_look_alike_are_kept_apart() -> None:
    back = round_trip(
        {1: torch.zeros(1), "1": torch.ones(2), "a/b": torch.ones(3), "a": {"b": torch.ones(4)}}
    )
    assert [len(back[key]) for key in (1, "1", "a/b")] == [1, 2, 3] and len(back["a"]["b"]) == 4


def test_functions_are_those_of_the_newly_built_object() -> None:
    old, new = {"by": [lambda x: 1], "of": math.sin}, {"by": [lambda x: 2], "of": math.sin}
    back = round_trip(old, new)
    assert back["by"][0] is new["by"][0] and back["of"] is math.sin
    with pytest.raises(ValueError, match=r"math\.cos where the state has math\.sin"):
        round_trip(old, new | {"of": math.cos})


class Own:
    pass


class OwnTensor(Tensor):
    pass


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Own(), "a test_encoding.Own"),
        (Fraction(1, 3), "a fractions.Fraction"),
        (functools.partial(print), "a functools.partial"),
        (numpy.array([Own()]), "a NumPy array of object"),
        (defaultdict(lambda: 0), "a defaultdict with a factory of its own"),
        (endless(), "nested without an end"),
        ("\ud800", "text that UTF-8 can't hold"),
        ({torch.ones(1): 1}, "a dictionary with tensors for keys"),
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "type torch.complex128"),
        (torch.ones(2, device="meta"), "without values"),
        (torch.ones(2).as_subclass(OwnTensor), "a test_encoding.OwnTensor"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(value: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        round_trip({"table": [0, value]})
    assert str(caught.value).startswith("train.optimizer.factory: found a state in which state/table/1")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"$nonsense": []},
        {"$tensor": "missing"},
        {"$dtype": "load"},
        {"$array": ["O", [1], {"$tensor": "short"}]},
        {"$array": ["(((", [1], {"$tensor": "short"}]},
        {"$dict": [[[], 1]]},
        {"$defaultdict": ["eval", []]},
        {"$made": "os.system"},
        {"$number": ["<f8", {"$tensor": "short"}]},
    ],
)
def test_what_no_encoder_made_is_refused(data: object) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        decode(data, {"short": torch.zeros(3, dtype=torch.uint8)})


def test_same_sees_types_bits_and_nan() -> None:
    assert same({"a": [math.nan, torch.tensor(math.nan)]}, {"a": [math.nan, torch.tensor(math.nan)]})
    for other in ((1,), [1.0], [True], [torch.tensor(1)], {"0": 1}):
        assert not same([1], other)
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
