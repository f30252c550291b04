"""Settings of gRPC: the library ignores those that it does not know, so their names are looked up in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from lowdimfa.services.rpc.options import client_options, server_options


@pytest.mark.parametrize("options", [client_options(6.0), server_options(6.0)], ids=["client", "server"])
def test_the_library_knows_every_setting(options: list[tuple[str, int]]) -> None:
    library = Path(cygrpc.__file__).read_bytes()
    unknown = [name for name, _ in options if name.encode() + b"\0" not in library]
    assert not unknown


@pytest.mark.parametrize("shortest", [None, 0.1])
def test_each_setting_is_given_once_as_the_library_takes_the_first(shortest: float | None) -> None:
    options = server_options(60.0, shortest)
    assert len(dict(options)) == len(options)
    pings = dict(options)["grpc.http2.min_ping_interval_without_data_ms"]
    assert pings == (10_000 if shortest is None else 100)


def test_a_server_allows_the_pings_of_its_clients() -> None:
    pings = dict(client_options(6.0))["grpc.keepalive_time_ms"]
    assert dict(server_options(6.0))["grpc.http2.min_ping_interval_without_data_ms"] < pings
