from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from rpc_helpers import LIVENESS, Inbox, no_threads_left

from lowdimfa.errors import HandshakeError, PeerError
from lowdimfa.services.rpc.handshake import PROTOCOL_VERSION, HandshakeServicer, Hello, SampleType, greet
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer

UPSTREAM = Hello(
    software="0.1.0",
    torch="2.6",
    run="run-7",
    block=0,
    role="block",
    input=(SampleType("uint8", (28, 28)),),
    output=(SampleType("float32", (32, 14, 14)),),
    error_dim=10,
    data="abc;0.01 1.5",
)
DOWNSTREAM = replace(
    UPSTREAM,
    block=1,
    role="head",
    input=UPSTREAM.output,
    output=(SampleType("float32", (10,)),),
    software="0.2.0",
)


@contextmanager
def block(hello: Hello, security: Security) -> Iterator[str]:
    server = RpcServer(f"block-{hello.block}", security, LIVENESS)
    server.add(HandshakeServicer(hello))
    with no_threads_left(), server:
        yield server.address


def test_neighbours_that_fit_learn_of_each_other() -> None:
    security = Security.loopback()
    with block(DOWNSTREAM, security) as address:
        assert greet(address, security, UPSTREAM, LIVENESS) == DOWNSTREAM


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, (str(PROTOCOL_VERSION), str(PROTOCOL_VERSION + 1))),
        ({"run": "run-8"}, ("run-7", "run-8")),
        ({"software": "1.0.0"}, ("0", "1")),
        ({"error_dim": 9}, ("10", "9")),
        ({"data": "abd;0.01 1.5"}, ("abc", "abd")),
        ({"data": "abc;0.01 1.52"}, ("abc, 1.5 at 0", "abc, 1.52 at 0")),
        ({"input": (SampleType("float32", (7, 7)),)}, ("[32, 14, 14]", "[7, 7]")),
        ({"input": (SampleType("bfloat16", (32, 14, 14)),)}, ("float32", "bfloat16")),
        ({"input": (SampleType("float32", (32, 14, 14), "x"),)}, ("0 has float32", "1 has 'x': float32")),
        (
            {"input": (SampleType("float32", (32, 14, 14)), SampleType("int64", (3,), "ids"))},
            ("has float32 of shape [32, 14, 14],", "[32, 14, 14], 'ids': int64 of shape [3]"),
        ),
    ],
)
def test_differences_name_both_blocks_and_values(change: dict[str, Any], values: tuple[str, str]) -> None:
    security = Security.loopback()
    with block(replace(DOWNSTREAM, **change), security) as address, pytest.raises(HandshakeError) as caught:
        greet(address, security, UPSTREAM, LIVENESS)
    for words in ("block 0", "block 1", *values):
        assert words in caught.value.message


def test_only_neighbours_compare_activations_and_only_readers_compare_data() -> None:
    security = Security.loopback()
    with block(replace(DOWNSTREAM, block=3, data=""), security) as address:
        greet(address, security, replace(UPSTREAM, output=(SampleType("float32", (1,)),)), LIVENESS)


def test_greeting_waits_for_a_server_that_starts_later() -> None:
    security = Security.loopback()
    server = RpcServer("block-1", security, LIVENESS)
    server.add(HandshakeServicer(DOWNSTREAM))
    answers = Inbox()
    with no_threads_left():
        greeting = threading.Thread(
            target=lambda: answers.put(greet(server.address, security, UPSTREAM, LIVENESS))
        )
        greeting.start()
        with server:
            assert answers.get() == DOWNSTREAM
        greeting.join()


def test_silence_is_a_peer_error_in_time() -> None:
    security = Security.loopback()
    server = RpcServer("block-1", security, LIVENESS)
    address = server.address
    server.stop(grace=0)
    started = time.monotonic()
    with pytest.raises(PeerError, match=f"block 0 lost block 1 at {address}"):
        greet(address, security, UPSTREAM, 0.5, "block 1")
    assert time.monotonic() - started < 20 * 0.5
