from __future__ import annotations

import socket

import pytest
from cryptography import x509
from rpc_helpers import LIVENESS, no_threads_left
from test_handshake import DOWNSTREAM, UPSTREAM, block

from lowdimfa.errors import HandshakeError, InputError, PeerError
from lowdimfa.services.rpc.handshake import HandshakeServicer, greet
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer


def test_mutual_tls_works() -> None:
    security = Security.mutual_tls()
    with block(DOWNSTREAM, security) as address:
        assert greet(address, security, UPSTREAM, LIVENESS) == DOWNSTREAM


@pytest.mark.parametrize("tls", [False, True])
def test_a_wrong_token_is_refused(tls: bool) -> None:
    security = Security.mutual_tls() if tls else Security.loopback()
    stranger = Security("guess", security.certificate, security.key, security.authority)
    with block(DOWNSTREAM, security) as address, pytest.raises(HandshakeError, match="token"):
        greet(address, stranger, UPSTREAM, LIVENESS)


@pytest.mark.parametrize("server_tls", [False, True])
def test_one_side_without_tls_fails_in_time(server_tls: bool) -> None:
    tls = Security.mutual_tls()
    plain = Security(tls.token)
    with (
        block(DOWNSTREAM, tls if server_tls else plain) as address,
        pytest.raises(PeerError, match="block 0 lost"),
    ):
        greet(address, plain if server_tls else tls, UPSTREAM, 1)


def test_a_certificate_of_another_run_is_refused() -> None:
    mine, other = Security.mutual_tls(), Security.mutual_tls()
    stranger = Security(mine.token, other.certificate, other.key, mine.authority)
    with block(DOWNSTREAM, mine) as address, pytest.raises(PeerError):
        greet(address, stranger, UPSTREAM, 1)


@pytest.mark.parametrize("address", ["10.0.0.5:1000", "0.0.0.0", "node-3:1000", "[2001:db8::1]:1000", "::"])
def test_plain_text_stays_on_the_machine(address: str) -> None:
    with pytest.raises(InputError, match="mutual_tls"):
        Security.loopback().require_allowed(address)
    Security.mutual_tls().require_allowed(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1000", "127.3.2.1", "localhost:1000", "[::1]:1000", "::1"])
def test_loopback_needs_no_tls(address: str) -> None:
    Security.loopback().require_allowed(address)


def test_servers_and_channels_ask_before_they_use_an_address() -> None:
    with pytest.raises(InputError):
        RpcServer("block-0", Security.loopback(), LIVENESS, host="0.0.0.0")
    with pytest.raises(InputError):
        Security.loopback().channel("10.0.0.5:1000", LIVENESS)


def test_secrets_stay_out_of_messages() -> None:
    security = Security.mutual_tls()
    assert security.key is not None
    assert security.token not in repr(security)
    assert "PRIVATE" not in repr(security)
    assert Security.loopback().token != Security.loopback().token


def test_the_certificate_outlasts_any_run() -> None:
    certificate = x509.load_pem_x509_certificate(Security.mutual_tls().certificate or b"")
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days >= 3650


def test_the_certificate_names_blocks_and_expires() -> None:
    certificate = x509.load_pem_x509_certificate(Security.mutual_tls(days=3).certificate or b"")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["lowdimfa-block"]
    assert (
        3
        <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / 86400
        < 3.1
    )


def test_a_server_can_be_stopped_twice_and_frees_its_port() -> None:
    with no_threads_left():
        server = RpcServer("block-0", Security.loopback(), LIVENESS)
        server.add(HandshakeServicer(DOWNSTREAM))
        server.start()
        server.stop(grace=0)
        server.stop(grace=0)
    port = int(server.address.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()
