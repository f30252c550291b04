from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.access import (
    Caller,
    Gate,
    Role,
    digest,
    new_token,
    read_tokens,
    require_role,
    write_tokens,
)
from lowdimfa.services.coordinator.limits import CALLS_AT_ONCE, CALLS_WAITING, ClientLimits
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.rpc.certificates import (
    Authority,
    channel_credentials,
    server_credentials,
    write_certificates,
)


def test_a_token_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token, entry = new_token("ada", "submit")
    write_tokens(path, [entry])
    assert token not in path.read_text() and digest(token) in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Gate(path).caller(f"Bearer {token}") == Caller("ada", Role.submit)


@given(st.text(max_size=30))
def test_nothing_else_lets_anybody_in(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "tokens-of-one.json"
    if not path.exists():
        write_tokens(path, [new_token("ada", "admin")[1]])
    gate = Gate(path)
    for value in (text, f"Bearer {text}", f"Basic {text}"):
        with pytest.raises(RefusedError) as caught:
            gate.caller(value)
        assert caught.value.status is grpc.StatusCode.UNAUTHENTICATED
        assert len(text) < 4 or text not in caught.value.message


def test_tokens_come_and_go_without_a_restart_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token, entry = new_token("ada", "read")
    write_tokens(path, [entry])
    gate = Gate(path)
    path.write_text("not json")
    assert gate.caller(f"bearer {token}").name == "ada"
    write_tokens(path, [])
    with pytest.raises(RefusedError):
        gate.caller(f"Bearer {token}")


@pytest.mark.parametrize("instead", ["nothing", "no file"])
def test_without_a_token_file_nobody_gets_in_until_it_is_back(
    instead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.json"
    token, entry = new_token("ada", "admin")
    write_tokens(path, [entry])
    gate = Gate(path)
    path.unlink()
    if instead == "no file":
        path.mkdir()
    for _ in range(2):
        with pytest.raises(RefusedError, match="can't read its token file") as caught:
            gate.caller(f"Bearer {token}")
        assert caught.value.status is grpc.StatusCode.UNAUTHENTICATED
    assert [record.levelname for record in caplog.records] == ["ERROR"] and str(path) in caplog.text
    if instead == "no file":
        path.rmdir()
    path.write_text("not json")  # what was taken away by the file doesn't come back by a broken one
    with pytest.raises(RefusedError):
        gate.caller(f"Bearer {token}")
    write_tokens(path, [entry])
    assert gate.caller(f"Bearer {token}") == Caller("ada", Role.admin)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "the whole file"),
        ('{"name": "a"}', "the whole file"),
        ('[{"name": "a", "role": "king", "sha256": "' + "0" * 64 + '"}]', "0.role"),
        ('[{"name": "a", "role": "read", "sha256": "secret"}]', "0.sha256"),
        ('[{"name": "a b", "role": "read", "sha256": "' + "0" * 64 + '"}]', "0.name"),
    ],
)
def test_a_bad_token_file_is_refused_with_the_place_and_without_its_contents(
    tmp_path: Path, text: str, place: str
) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_tokens(path)
    assert f"{path}: {place}" in caught.value.message
    assert "secret" not in caught.value.message


def test_each_role_includes_those_before_it() -> None:
    for have in Role:
        for need in Role:
            if have >= need:
                require_role(Caller("a", have), need, "Call")
            else:
                with pytest.raises(RefusedError, match=f"needs the role '{need.name}'"):
                    require_role(Caller("a", have), need, "Call")


def test_streams_of_a_client_are_counted_and_given_back() -> None:
    async def scenario() -> None:
        limits = ClientLimits(streams=2)
        async with limits.stream("a"), limits.stream("a"):
            with pytest.raises(RefusedError, match="2 streams open"):
                async with limits.stream("a"):
                    pass
            async with limits.stream("b"):
                pass
        async with limits.stream("a"), limits.stream("a"):
            pass

    asyncio.run(scenario())


def test_a_client_that_floods_waits_for_itself_and_is_then_refused() -> None:
    async def scenario() -> None:
        limits, go = ClientLimits(streams=1), asyncio.Event()
        most = 0
        now = 0

        async def call(client: str) -> None:
            nonlocal most, now
            async with limits.call(client):
                now += 1
                most = max(most, now)
                await go.wait()
                now -= 1

        flood = [asyncio.create_task(call("a")) for _ in range(CALLS_AT_ONCE + CALLS_WAITING)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as caught:
            await call("a")
        assert caught.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        other = asyncio.create_task(call("b"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert most == CALLS_AT_ONCE + 1  # the other's call did not wait
        go.set()
        await asyncio.gather(*flood, other)
        assert not limits._calls and not limits._turns

    asyncio.run(scenario())


def test_certificates_are_written_once_with_keys_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    paths = write_certificates(folder, ["cluster.example", "10.0.0.7"], 30)
    assert [path.name for path in paths] == [
        "ca.crt",
        "ca.key",
        "server.crt",
        "server.key",
        "client.crt",
        "client.key",
    ]
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o600 if path.suffix == ".key" else 0o644)
    server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    server.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cluster.example"]
    left = server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(InputError, match="already there"):
        write_certificates(folder, [], 30)
    assert (folder / "ca.key").read_bytes() == before


def test_a_server_s_files_are_checked_before_they_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    write_certificates(folder, ["localhost"], 30)
    assert server_credentials(folder / "server.crt", folder / "server.key", folder / "ca.crt") is not None
    expired, key = Authority("old", -1).issue("old", ["localhost"], "server")
    (folder / "old.crt").write_bytes(expired)
    (folder / "old.key").write_bytes(key)
    for certificate, private, words in (
        ("server.crt", "client.key", "a key of another certificate"),
        ("old.crt", "old.key", "valid today"),
        ("server.key", "server.key", "no certificate"),
        ("server.crt", "server.crt", "no private key"),
        ("none.crt", "server.key", "can't be read"),
    ):
        with pytest.raises(InputError, match=words):
            server_credentials(folder / certificate, folder / private, None)


@pytest.mark.parametrize(
    "host", ["not a host", "a.b:50051", "[::1]", "https://a.b", "a/b", "a\nb", "", ".a", "a..b"]
)
def test_names_that_are_no_hosts_are_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found neither a name nor an address"):
        write_certificates(tmp_path / "tls", [host], 1)
    assert not (tmp_path / "tls").exists()


def test_hosts_may_be_names_patterns_and_addresses(tmp_path: Path) -> None:
    assert write_certificates(tmp_path / "tls", ["localhost", "*.a-b.example", "::1", "10.0.0.7", "a_b"], 1)
    with pytest.raises(InputError, match="no place to write"):
        write_certificates(tmp_path / ("n" * 300), ["localhost"], 1)


def test_a_client_is_told_which_of_its_files_is_no_good(tmp_path: Path) -> None:
    write_certificates(tmp_path, ["localhost"], 1)
    write_certificates(tmp_path / "other", ["localhost"], 1)
    authority, certificate, key = (tmp_path / name for name in ("ca.crt", "client.crt", "client.key"))
    (tmp_path / "junk").write_text("junk")
    channel_credentials(authority, certificate, key)
    channel_credentials(None, None, None)
    for files, words in (
        ((tmp_path / "junk", certificate, key), "junk: found no certificate"),
        ((key, certificate, key), "client.key: found no certificate"),
        ((tmp_path / "none", None, None), "none: found a file that can't be read"),
        ((authority, certificate, tmp_path / "other" / "client.key"), "client.key: found a key of another"),
    ):
        with pytest.raises(InputError, match=words):
            channel_credentials(*files)


def test_certificates_are_valid_for_days_that_there_are(tmp_path: Path) -> None:
    for days in (float("nan"), float("inf"), 9_999_999):
        with pytest.raises(InputError, match="36,500 at most"):
            write_certificates(tmp_path / "tls", ["localhost"], days)
    assert not list(tmp_path.iterdir())


def test_beyond_loopback_a_service_needs_tls_and_tokens_or_to_be_told(tmp_path: Path) -> None:
    from lowdimfa.services.coordinator.server import require_safe

    files = {"tls_cert": tmp_path / "c", "tls_key": tmp_path / "k"}
    require_safe(ServeSettings(host="127.0.0.1"))
    require_safe(ServeSettings(host="::1"))
    require_safe(ServeSettings(host="0.0.0.0", insecure=True))
    require_safe(ServeSettings(host="0.0.0.0", tokens=tmp_path / "t", **files))
    for settings, words in (
        (ServeSettings(host="0.0.0.0"), "no --tls-cert and --tls-key and no --tokens"),
        (ServeSettings(host="10.0.0.7", **files), "no --tokens"),
        (ServeSettings(host="some.name", tokens=tmp_path / "t"), "no --tls-cert"),
        (ServeSettings(tls_cert=tmp_path / "c"), "one without the other"),
        (ServeSettings(client_ca=tmp_path / "c"), "--client-ca"),
    ):
        with pytest.raises(InputError, match=words):
            require_safe(settings)
