from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.errors import ProtocolError
from lowdimfa.formats import INT8
from lowdimfa.services.rpc.connection import Resend, Resends
from lowdimfa.services.rpc.tensors import MAX_TENSOR_BYTES, TensorBuffer, dtype_code, dtype_of, encode, layout
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.rpc.v1 import tensors_pb2 as pb_tensors
from lowdimfa.services.stream.frames import Assembly, Message, pack, run_fingerprint, split, unpack
from lowdimfa.services.stream.limits import ErrorLimit, SampleLimit
from lowdimfa.services.stream.resumable import Incoming, wire_bytes
from lowdimfa.tickets import Ticket
from lowdimfa.values import CARRIED, TensorType

DTYPES = [dtype_of(code) for code in range(len(CARRIED))]
SHAPES = st.lists(st.integers(0, 5), max_size=8).filter(lambda shape: math.prod(shape) <= 2000)


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    raw = torch.randint(
        0, 256, (math.prod(shape) * dtype.itemsize,), generator=torch.Generator().manual_seed(seed)
    )
    if dtype == torch.bool:
        raw %= 2
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def decode(code: int, shape: Sequence[int], data: bytes | memoryview) -> torch.Tensor:
    """Return the tensor of bytes as a stream does, which compares their number before memory is taken."""
    if layout(code, tuple(shape))[1] != len(data):
        raise ProtocolError("too many bytes, or too few")
    buffer = TensorBuffer(code, shape)
    buffer.write(data)
    return buffer.tensor()


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(encode(tensor))


@given(st.sampled_from(DTYPES), SHAPES, st.integers(0, 2**32))
def test_every_tensor_comes_back_bit_by_bit(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    tensor = random_tensor(dtype, shape, seed)
    back = decode(dtype_code(dtype), shape, bits(tensor))
    assert back.dtype == dtype
    assert list(back.shape) == shape
    assert bits(back) == bits(tensor)


def test_every_type_that_a_plan_lets_go_on_has_a_code_and_no_other() -> None:
    assert set(DTYPES) == set(CARRIED) and len(DTYPES) == len(pb_tensors.Dtype.keys())


def test_strided_tensors_travel_in_row_major_order() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()[:, ::2]
    torch.testing.assert_close(decode(0, tensor.shape, encode(tensor)), tensor)


def test_decoding_takes_aligned_memory_of_its_own() -> None:
    data = bytearray(bits(torch.arange(64.0)))
    tensor = decode(0, [64], memoryview(data))
    data[:] = bytes(len(data))
    assert tensor[63] == 63
    assert tensor.data_ptr() % 64 == 0


@given(
    st.integers(-3, 300),
    st.lists(st.integers(-(2**63), 2**63), max_size=10) | st.lists(st.integers(-1, 4), max_size=10),
    st.binary(max_size=64),
)
def test_malformed_tensors_are_protocol_errors(code: int, shape: list[int], data: bytes) -> None:
    try:
        tensor = decode(code, shape, data)
    except ProtocolError:
        return
    assert tensor.nbytes == len(data)


@pytest.mark.parametrize(
    ("code", "shape", "data"),
    [
        (8, [1], bytes(4)),
        (0, [1], bytes(3)),
        (0, [1], bytes(5)),
        (0, [-1], bytes(4)),
        (0, [1] * 9, bytes(4)),
        (0, [0, 2**62, 2**62], b""),
        (7, [2], b"\x01\x02"),
    ],
)
def test_each_kind_of_malformed_tensor_is_refused(code: int, shape: list[int], data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(code, shape, data)


def test_what_no_machine_holds_is_refused_and_a_large_shard_is_not() -> None:
    with pytest.raises(ProtocolError):
        TensorBuffer(0, [MAX_TENSOR_BYTES])
    code, shard = dtype_code(torch.uint8), (3 << 32,)
    SampleLimit.of((), torch.uint8, shard[0]).check(pb.KIND_PART, [(code, shard)])
    assert layout(code, shard) == (torch.uint8, shard[0])


def test_complex_tensors_have_no_code() -> None:
    with pytest.raises(ProtocolError, match="complex64"):
        encode(torch.zeros(2, dtype=torch.complex64))


@given(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=3), st.booleans(), st.integers(0, 9))
def test_activations_survive_being_cut(samples: int, shape: list[int], probe: bool, seed: int) -> None:
    tensors = tuple(random_tensor(torch.float32, [samples, *shape], seed + i) for i in range(1 + probe))
    activation = Message("train", Ticket(3, 1), tensors, 5)
    limit = SampleLimit.of(tuple(shape), torch.float32, 4)
    assert bits(assemble(list(split(activation, 1, 0)), limit).tensors[-1]) == bits(tensors[-1])


def test_large_activations_take_several_frames() -> None:
    tensors = (torch.randn(3, 1000, 200), torch.randn(3, 1000, 200))
    frames = list(split(Message("evaluate", Ticket(0, 0), tensors, 0), 1, 0))
    assert len(frames) == 6
    assert max(map(len, frames)) < (1 << 20) + 100
    back = assemble(frames, SampleLimit.of((1000, 200), torch.float32, 3))
    assert back.kind == "evaluate"
    assert all(torch.equal(one, other) for one, other in zip(back.tensors, tensors, strict=True))


@given(st.binary(max_size=40))
def test_malformed_frames_are_protocol_errors_and_nothing_else(frame: bytes) -> None:
    limit = SampleLimit.of((2,), torch.float32, 2)
    try:
        header, data = unpack(frame)
        Assembly(header, limit).add(header.offset, data)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [pb.TensorType(dtype=0, shape=[2, 3])],
        [pb.TensorType(dtype=0, shape=[5, 2])],
        [pb.TensorType(dtype=1, shape=[2, 2])],
        [pb.TensorType(dtype=99, shape=[2, 2])],
        [pb.TensorType(dtype=0)],
        [pb.TensorType(dtype=0, shape=[2, 2]), pb.TensorType(dtype=0, shape=[1, 2])],
        [pb.TensorType(dtype=0, shape=[2, 2])] * 3,
    ],
)
def test_unexpected_tensors_are_refused_before_memory_is_taken(tensors: list[pb.TensorType]) -> None:
    with pytest.raises(ProtocolError):
        Assembly(pb.Header(tensors=tensors), SampleLimit.of((2,), torch.float32, 4))


UINT8 = dtype_code(torch.uint8)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (0, [2, 40]),
        (UINT8, [2, 40]),
        (UINT8, [2, 44]),
        (UINT8, [2, 43, 1]),
        (UINT8, [5, 43]),
        (UINT8, [1 << 40, 43]),
        (UINT8, []),
        (99, [2, 43]),
    ],
)
def test_packed_activations_of_another_size_are_refused_by_name(dtype: int, shape: list[int]) -> None:
    limit = SampleLimit((TensorType((40,), torch.float32),), 4, (INT8,))
    Assembly(pb.Header(tensors=[pb.TensorType(dtype=UINT8, shape=[2, 43])]), limit)
    assert limit.nbytes == 2 * 4 * 43
    tensors = [pb.TensorType(dtype=dtype, shape=shape)]  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="unknown element type" if dtype == 99 else "activations: int8"):
        Assembly(pb.Header(tensors=tensors), limit)


@pytest.mark.parametrize(("offset", "size"), [(0, 17), (4, 4), (0, 0)])
def test_frames_out_of_place_are_refused(offset: int, size: int) -> None:
    header = pb.Header(tensors=[pb.TensorType(shape=[2, 2])])
    with pytest.raises(ProtocolError):
        Assembly(header, SampleLimit.of((2,), torch.float32, 4)).add(offset, memoryview(bytes(size)))


def test_frame_layout() -> None:
    frame = pack(pb.Header(sequence=1), b"abc")
    assert frame == b"\x02\x00\x00\x00" + zlib.crc32(b"\x08\x01").to_bytes(4, "little") + b"\x08\x01abc"


@given(st.binary(max_size=100), st.integers(0, 10_000))
def test_a_guarded_frame_with_any_bit_changed_is_noticed(data: bytes, bit: int) -> None:
    frame = bytearray(pack(pb.Header(sequence=1, step=5), data, guarded=True))
    assert unpack(bytes(frame)) == (pb.Header(sequence=1, step=5), data)
    frame[bit // 8 % len(frame)] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        unpack(bytes(frame))


def test_the_same_bytes_once_more_change_nothing() -> None:
    header = pb.Header(kind=pb.KIND_ERROR, tensors=[pb.TensorType(shape=[2, 2])])
    assembly = Assembly(header, ErrorLimit(2))
    data = memoryview(torch.arange(4.0).numpy()).cast("B")
    for start, again in ((0, 0), (8, 0)):
        message = assembly.add(start, data[start : start + 8])
        if message is None:
            assert assembly.add(again, data[:8]) is None
    assert message is not None and torch.equal(message.tensors[0], torch.arange(4.0).reshape(2, 2))


def test_what_a_carrier_brings_takes_no_memory_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.services.stream.frames.TensorBuffer", None)
    assembly = Assembly(
        pb.Header(tensors=[pb.TensorType(shape=[2, 2])]), SampleLimit.of((2,), torch.float32, 2)
    )
    assert assembly.types == [(torch.float32, (2, 2))]
    brought = torch.ones(2, 2)
    assert assembly.with_tensors((brought,)).tensors[0] is brought


@pytest.mark.parametrize("kind", [pb.KIND_ERROR, pb.KIND_PROBE])
def test_errors_and_activations_keep_to_their_own_streams(kind: pb.Kind) -> None:
    types = [pb.TensorType(shape=[2, 2])]
    Assembly(pb.Header(kind=kind, tensors=types), ErrorLimit(2))
    Assembly(pb.Header(tensors=types), SampleLimit.of((2,), torch.float32, 2))
    with pytest.raises(ProtocolError):
        Assembly(pb.Header(kind=kind, tensors=types), SampleLimit.of((2,), torch.float32, 2))
    with pytest.raises(ProtocolError):
        Assembly(pb.Header(tensors=types), ErrorLimit(2))


@pytest.mark.parametrize(
    ("kind", "shapes", "width", "taken"),
    [
        (pb.KIND_ERROR, [[6, 2], [2, 5]], 5, True),
        (pb.KIND_ERROR, [[6, 2]], 5, True),
        (pb.KIND_ERROR, [[6, 2], [2, 5]], None, False),
        (pb.KIND_ERROR, [[6, 2], [2, 4]], 5, False),
        (pb.KIND_ERROR, [[6, 2], [2, 5], [2, 5]], 5, False),
        (pb.KIND_PROBE, [[6, 2], [2, 5]], 5, False),
        (pb.KIND_ERROR, [], 5, False),
    ],
)
def test_a_projection_comes_with_an_error_where_it_is_to(
    kind: pb.Kind, shapes: list[list[int]], width: int | None, taken: bool
) -> None:
    header = pb.Header(kind=kind, tensors=[pb.TensorType(shape=shape) for shape in shapes])
    if taken:
        Assembly(header, ErrorLimit(2, width))
        return
    with pytest.raises(ProtocolError):
        Assembly(header, ErrorLimit(2, width))


def test_wire_bytes_count_frames_of_16_kib() -> None:
    assert wire_bytes(100) == 100 + 5 + 9
    assert wire_bytes((1 << 14) - 5) == (1 << 14) + 9
    assert wire_bytes((1 << 14) - 4) == (1 << 14) + 1 + 18


def test_fingerprint_is_the_head_of_the_digest() -> None:
    assert run_fingerprint("") == 0xE3B0C442


def assemble(frames: list[bytes], limit: SampleLimit) -> Message:
    header, data = unpack(frames[0])
    assembly = Assembly(header, limit)
    activation = assembly.add(header.offset, data)
    for frame in frames[1:]:
        if activation is None:
            header, data = unpack(frame)
            activation = assembly.add(header.offset, data)
    assert activation is not None
    return activation


def refusal_of(*frames: bytes) -> ProtocolError:
    """Return the error for frames that stay as they are, however often they are asked for again."""
    incoming = Incoming(
        "activation", 2, run_fingerprint("r"), 1, SampleLimit.of((3,), torch.float32, 4), print
    )
    for _ in range(Resends.LIMIT):
        with pytest.raises(Resend):
            for frame in frames:
                incoming.take(frame)
    with pytest.raises(ProtocolError) as refused:
        for frame in frames:
            incoming.take(frame)
    return refused.value


@pytest.mark.parametrize(
    ("run", "block", "expected"),
    [
        ("s", 1, "it comes from another run, or from before a recovery"),
        ("r", 0, "it comes from block 0 and not from block 1"),
    ],
)
def test_a_message_from_elsewhere_says_from_where(run: str, block: int, expected: str) -> None:
    message = Message("train", Ticket(7, 0), (torch.ones(2, 3),), 0)
    refused = refusal_of(*split(message, run_fingerprint(run), block))
    assert refused.message == f"block 2, step 7: activation 0: {expected}"


def test_a_frame_that_goes_on_wrongly_names_the_step_of_its_message() -> None:
    message = Message("train", Ticket(7, 0), (torch.ones(2, 3),), 0)
    (frame,) = split(message, run_fingerprint("r"), 1)
    header, data = unpack(frame)
    refused = refusal_of(pack(header, data[:12]), pack(pb.Header(sequence=0, offset=16), data[16:]))
    assert (
        refused.step == 7 and "step 7" in refused.message and "from 16 where 12 was next" in refused.message
    )


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 3, 0, 2), (0,), (0, 0)])
def test_members_without_numbers_travel_beside_others(sizes: tuple[int, ...]) -> None:
    tensors = tuple(torch.randn(2, size) for size in sizes)
    limit = SampleLimit(tuple(TensorType((size,), torch.float32) for size in sizes), 2)
    arrived = assemble(list(split(Message("train", Ticket(0, 0), tensors, 0), 1, 0)), limit)
    assert all(map(torch.equal, arrived.tensors, tensors))
