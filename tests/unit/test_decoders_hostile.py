"""Valid messages and files, changed: a decoder refuses them in its own words, soon, and takes little memory."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowdimfa.errors import HandshakeError, InputError, ProtocolError
from lowdimfa.services.rpc.connection import Resend
from lowdimfa.services.rpc.handshake import Hello, SampleType, check_compatible
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.spec.dialect import read_yaml
from lowdimfa.services.spec.load import parse_text, violations
from lowdimfa.services.spec.refusals import MOST_NAMED
from lowdimfa.services.stream.frames import Assembly, pack, run_fingerprint
from tests.fuzz import files, wire
from tests.fuzz.guard import LONGEST_MESSAGE, MOST_SECONDS, Finding, guarded
from tests.fuzz.mutate import change_bytes, cut, join
from tests.fuzz.specification import SMALL
from tests.fuzz.targets import TARGETS

sizes = st.integers(0, 3) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1])
shapes = st.lists(sizes, max_size=10)


@pytest.mark.parametrize("name", TARGETS)
@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_changed_messages_are_refused_in_order(name: str, seed: int) -> None:
    target, draw = TARGETS[name], random.Random(seed)
    data = draw.choice(list(target.seeds()))
    for _ in range(draw.randrange(1, 4)):
        data = (target.mutate(data, draw) if draw.random() < 0.6 else None) or change_bytes(data, draw)
    guarded(target.decode, data)


def error(shape: list[int], data: bytes = b"", dtype: int = 0, offset: int = 0) -> bytes:
    types = [pb.TensorType(dtype=dtype, shape=shape)]  # type: ignore[arg-type]
    header = pb.Header(run=run_fingerprint(wire.RUN), kind=pb.KIND_ERROR, offset=offset, tensors=types)
    return pack(header, data, guarded=True)


@given(shapes, st.integers(-3, 9), st.binary(max_size=64))
def test_an_error_s_announced_shape_takes_no_memory(shape: list[int], dtype: int, data: bytes) -> None:
    guarded(wire.decode_errors, error(shape=shape, dtype=dtype, data=data))
    guarded(wire.decode_errors, join([error(shape=shape, dtype=dtype, data=data)]))


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
def test_parts_in_any_order_and_number_are_joined_right_or_asked_for_again(
    order: list[int], parts: int
) -> None:
    """What is delivered is what was sent, whichever of its parts came twice, late or never."""
    values = torch.arange(3.0 * parts).reshape(parts, 3)
    messages = [
        error(shape=[parts, 3], offset=12 * part, data=values[part].numpy().tobytes())
        for part in range(parts)
    ]
    taken: list[Any] = []
    subscriber = wire.error_subscriber(taken.append)
    for index in [*(at for at in order if at < parts), *range(parts)]:
        try:
            subscriber._incoming.take(messages[index])
        except Resend:
            subscriber._subscribe()
        except ProtocolError:
            return
    assert all(torch.equal(vector.error, values) for vector in taken)


def test_parts_without_data_do_not_go_on_for_ever() -> None:
    with pytest.raises(Resend, match="0 bytes from 0 for a message of 12"):
        wire.decode_errors(join([error(shape=[1, 3])]))


@given(shapes, st.integers(0, 2**64 - 1), st.binary(max_size=64), st.booleans())
def test_an_activation_s_announced_shape_takes_no_memory(
    shape: list[int], offset: int, data: bytes, twice: bool
) -> None:
    tensors = [pb.TensorType(shape=shape)] * (1 + twice)
    header = pb.Header(run=run_fingerprint(wire.RUN), offset=offset, tensors=tensors)
    guarded(wire.decode_activations, join([pack(header, data)]))


def test_a_shape_of_a_million_sizes_makes_no_long_message() -> None:
    header = pb.Header(tensors=[pb.TensorType(shape=[1] * 1_000_000)])
    with pytest.raises(ProtocolError) as caught:
        Assembly(header, wire.LIMIT)
    assert len(caught.value.message) < 300


@given(st.text(max_size=20) | st.just("x" * 10**6), shapes | st.just([7] * 10**5))
def test_a_stranger_s_description_makes_no_long_message(word: str, shape: list[int]) -> None:
    theirs = Hello(
        word,
        word,
        word,
        0,
        "block",
        (SampleType(word, tuple(shape), word),) * 2,
        (SampleType(word, tuple(shape)),),
        3,
    )
    with pytest.raises(HandshakeError) as caught:
        check_compatible(wire.MINE, theirs)
    assert len(caught.value.message) < LONGEST_MESSAGE
    assert caught.value.message.isprintable()


@given(st.sampled_from(sorted(files._DTYPES)), shapes, st.integers(0, 2**64 - 1))
@example("F8_E8M0", [0], 0)
def test_a_header_of_a_checkpoint_s_file_takes_no_memory(dtype: str, shape: list[int], end: int) -> None:
    for stop in (0, end):
        header = files._dump({"model/w": {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}})
        guarded(files.decode_safetensors, len(header).to_bytes(8, "little") + header + bytes(min(stop, 64)))


@given(st.integers(0, 2**64 - 1))
def test_a_header_s_length_takes_no_memory(length: int) -> None:
    guarded(files.decode_safetensors, length.to_bytes(8, "little") + b'{"a":1}')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('a: "\\UFFFFFFFF"', "too large"),
        ('a: "\\U00110000"', "not in range"),
        ('a: "\\uD800"', "half of a surrogate pair"),
        ("a: !!float " + "1:" * 400 + "0.0", "a number of 803 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        (f"%YAML {'9' * 5000}.1\n--- a", "4300 digits"),
        ("a: !" + "x" * 5000 + " b", "could not determine a constructor"),
        ("a: *" + "x" * 5000, "undefined alias"),
        ("a: " + "[" * 150 + "]" * 150, "within each other"),
        ("a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1500)), "within each other"),
        ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)), "aliases that"),
        ("a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)), "aliase"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_yaml_that_is_larger_than_it_looks_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_yaml(text, "text")
    assert len(caught.value.message) < 400
    assert violations(text) == [("", caught.value.message.replace("text", "specification", 1))]


def test_a_few_aliases_are_fine() -> None:
    shared = "a: &a {n: [1, 2]}\n" + "".join(f"b{n}: *a\n" for n in range(500))
    assert read_yaml(shared, "text")["b499"] == {"n": [1, 2]}


@pytest.mark.parametrize("keys", [1, MOST_NAMED, MOST_NAMED + 1, 1000])
def test_so_many_wrong_keys_are_named_and_no_more(keys: int) -> None:
    text = SMALL + "".join(f"key{index}: 1\n" for index in range(keys))
    named = violations(text)
    assert len(named) == min(keys, MOST_NAMED) + (keys > MOST_NAMED)
    assert (named[-1] == ("", "and more is wrong")) == (keys > MOST_NAMED)
    with pytest.raises(InputError) as caught:
        parse_text(text, "text")
    assert caught.value.message.endswith("and more") == (keys > MOST_NAMED)
    assert len(caught.value.message) < LONGEST_MESSAGE


@pytest.mark.parametrize("key", ["1", "1.5", "null", "true", "!!binary aGk=", "''", "x" * 5000])
@pytest.mark.parametrize("section", ["", "train"])
def test_keys_of_any_type_are_refused_with_their_place(section: str, key: str) -> None:
    text = SMALL.replace("{steps: 1}", f"{{steps: 1, ? {key} : 2}}") if section else f"{SMALL}? {key}\n: 2\n"
    with pytest.raises(InputError, match="an unknown key") as caught:
        parse_text(text, "text")
    assert f"text: {section}" in caught.value.message
    assert len(caught.value.message) < 1000


def test_many_layer_names_are_compared_in_time() -> None:
    names = ", ".join(f"layer{index}" for index in range(500))
    text = SMALL.replace("blocks: 2", f"blocks: [{names}, layer7]")
    with pytest.raises(InputError, match="'layer7' more than once"):
        parse_text(text, "text")


def test_the_guard_sees_what_it_is_for() -> None:
    """Time, memory, exceptions and long messages: each is a finding."""

    def slow(data: bytes) -> None:
        began = time.thread_time()
        while time.thread_time() < began + MOST_SECONDS:
            pass

    def large(data: bytes) -> None:
        torch.empty(1 << 32, dtype=torch.uint8)

    def wordy(data: bytes) -> None:
        raise ProtocolError("x" * 5000)

    def wrong(data: bytes) -> None:
        raise IndexError

    for decode in (slow, large, wordy, wrong):
        with pytest.raises(Finding):
            guarded(decode, b"")
    assert guarded(lambda data: None, b"")


def test_an_input_s_messages_come_apart_as_they_were_joined() -> None:
    pieces = [b"", b"abc", bytes(300)]
    assert cut(join(pieces)) == pieces
    assert cut(b"\xff\xff\xff\xffab") == [b"ab"]
