"""Who is refused, with what status, and that nothing secret is said about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from coordinator_thread import SPECIFICATION, Running, coordinator
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rpc_helpers import eventually

from lowdimfa.errors import AccessError, InputError, PeerError
from lowdimfa.services.coordinator.access import new_token, write_tokens
from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.rpc.certificates import Authority
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb

METHOD = "/lowdimfa.v1.Coordinator/"


@dataclass
class Guarded:
    """A coordinator with mutual TLS and a token of each role."""

    running: Running
    folder: Path
    tokens: dict[str, str]

    def client(self, role: str = "admin", **options: Any) -> CoordinatorClient:
        given: dict[str, Any] = {
            "token": self.tokens.get(role, role),
            "authority": self.folder / "ca.crt",
            "certificate": self.folder / "client.crt",
            "key": self.folder / "client.key",
            "liveness": 3.0,
        }
        return CoordinatorClient(Connection(self.running.address, **(given | options)))

    def channel(self) -> grpc.Channel:
        files = [(self.folder / name).read_bytes() for name in ("ca.crt", "client.key", "client.crt")]
        return grpc.secure_channel(self.running.address, grpc.ssl_channel_credentials(*files))

    def metadata(self, role: str = "admin") -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[role]}"),)


def write(folder: Path, name: str, pair: tuple[bytes, bytes]) -> None:
    (folder / f"{name}.crt").write_bytes(pair[0])
    (folder / f"{name}.key").write_bytes(pair[1])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority, stranger = Authority("test", 1), Authority("stranger", 1)
    (folder / "ca.crt").write_bytes(authority.certificate)
    write(folder, "server", authority.issue("coordinator", ["127.0.0.1"], "server"))
    write(folder, "client", authority.issue("client", ["client"], "client"))
    write(folder, "stranger", stranger.issue("client", ["client"], "client"))
    expired = Authority("test", 1)
    expired._key, expired._name, expired._days = authority._key, authority._name, -0.5
    write(folder, "expired", expired.issue("client", ["client"], "client"))
    made = {role: new_token(role, role) for role in ("read", "submit", "admin")}
    made["other"] = new_token("other", "submit")
    write_tokens(folder / "tokens.json", [entry for _, entry in made.values()])

    def secure(settings: ServeSettings) -> ServeSettings:
        return replace(
            settings,
            tls_cert=folder / "server.crt",
            tls_key=folder / "server.key",
            client_ca=folder / "ca.crt",
            tokens=folder / "tokens.json",
        )

    with coordinator(folder, change=secure) as running:
        yield Guarded(running, folder, {role: token for role, (token, _) in made.items()})


@pytest.fixture(autouse=True)
def goes_on_and_keeps_secrets(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "lowdimfa")
    caplog.set_level(logging.DEBUG, "lowdimfa")
    yield
    with guarded.client() as calls:  # whatever was tried, the service answers
        list(calls.jobs(limit=1))
    said = caplog.text + "".join(capfd.readouterr())
    for token in [*guarded.tokens.values(), "wrong-token-of-a-stranger"]:
        assert token not in said


def test_no_token_and_a_wrong_one_are_not_let_in(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    with guarded.client(token="") as calls, pytest.raises(AccessError, match="no token") as none:
        list(calls.jobs())
    assert none.value.exit_code == 6
    with guarded.client("wrong-token-of-a-stranger") as calls, pytest.raises(AccessError, match="not known"):
        list(calls.jobs())
    eventually(lambda: caplog.text.count("UNAUTHENTICATED") == 2)


def test_a_token_that_may_only_read_submits_stops_and_resumes_nothing(guarded: Guarded) -> None:
    with guarded.client("submit") as calls:
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
    with guarded.client("read") as calls:
        assert calls.get(job_id)["owner"] == "submit"
        assert next(calls.watch(job_id))["state"] == "queued"
        for call in (
            lambda: calls.submit("a", SPECIFICATION, {}),
            lambda: calls.stop(job_id, now=True),
            lambda: calls.resume(job_id),
        ):
            with pytest.raises(AccessError, match="needs the role 'submit'"):
                call()


def test_nobody_but_an_administrator_stops_another_s_job(guarded: Guarded) -> None:
    with guarded.client("submit") as calls:
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
    with guarded.client("other") as calls, pytest.raises(AccessError, match="somebody else's job"):
        calls.stop(job_id, now=True)
    with guarded.client("admin") as calls:
        assert calls.stop(job_id, now=True)["state"] == "stopped"


@pytest.mark.parametrize("name", ["expired", "stranger"])
def test_a_client_s_certificate_has_to_be_valid_today_and_of_the_authority(
    guarded: Guarded, name: str
) -> None:
    folder = guarded.folder
    files = [(folder / file).read_bytes() for file in ("ca.crt", f"{name}.key", f"{name}.crt")]
    with grpc.secure_channel(guarded.running.address, grpc.ssl_channel_credentials(*files)) as channel:
        call = channel.unary_unary(f"{METHOD}ListJobs")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=guarded.metadata(), timeout=1.0)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    options = {"certificate": folder / f"{name}.crt", "key": folder / f"{name}.key", "liveness": 1.0}
    if name == "expired":
        with pytest.raises(InputError, match=r"expired\.crt: found a certificate valid from"):
            guarded.client(**options)
    else:
        with guarded.client(**options) as calls, pytest.raises(PeerError):
            list(calls.jobs())


def test_a_client_without_a_certificate_or_with_another_authority_gets_no_connection(
    guarded: Guarded,
) -> None:
    with (
        guarded.client(certificate=None, key=None, liveness=1.0) as calls,
        pytest.raises(PeerError),
    ):
        list(calls.jobs())
    with (
        guarded.client(authority=guarded.folder / "stranger.crt", liveness=1.0) as calls,
        pytest.raises(PeerError, match="secure connection"),
    ):
        list(calls.jobs())


def test_plaintext_to_a_tls_port_gets_no_answer(guarded: Guarded) -> None:
    plain = {"authority": None, "certificate": None, "key": None, "liveness": 1.0}
    with guarded.client(**plain) as calls, pytest.raises(PeerError, match="does it use TLS"):
        list(calls.jobs())


def test_a_client_sends_no_token_in_the_clear_beyond_this_machine() -> None:
    with pytest.raises(InputError, match="no TLS"):
        CoordinatorClient(Connection("192.0.2.1:50051", token="secret"))


@pytest.mark.parametrize(("size", "words"), [(300 << 10, "at most 262,144"), (5 << 20, "larger than max")])
def test_an_oversized_specification_is_refused_with_the_limit(
    guarded: Guarded, size: int, words: str
) -> None:
    with guarded.channel() as channel:
        submit = channel.unary_unary(
            METHOD + "SubmitJob", request_serializer=pb.SubmitJobRequest.SerializeToString
        )
        request = pb.SubmitJobRequest(name="a", specification=SPECIFICATION + "#" * size)
        with pytest.raises(grpc.RpcError) as caught:
            submit(request, metadata=guarded.metadata(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert words in caught.value.details()


def test_files_beyond_the_limit_and_outside_their_folder_are_refused(guarded: Guarded) -> None:
    with guarded.client() as calls:
        with pytest.raises(Exception, match="files: found"):
            calls.submit("a", SPECIFICATION, {"big.py": "#" * (2 << 20) + "#"})
        for path in (
            "/etc/x.py",
            "../x.py",
            "a/../../x.py",
            "a//b.py",
            "./a.py",
            "x.sh",
            "",
            "a\0.py",
            "a" * 300 + ".py",
        ):
            with pytest.raises(InputError, match=r"files\[0\]\.path"):
                calls.submit("a", SPECIFICATION, {path: ""})
    assert not (guarded.folder / "x.py").exists()


@pytest.mark.parametrize("method", ["SubmitJob", "GetJob", "ListJobs", "StopJob", "ResumeJob"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x00" * 64])
def test_malformed_messages_are_refused(guarded: Guarded, method: str, data: bytes) -> None:
    with guarded.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD + method)(data, metadata=guarded.metadata(), timeout=10)
    # What can't be parsed at all never reaches the service: gRPC answers for it.
    assert caught.value.code() in (
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNKNOWN,
    )


@pytest.mark.parametrize(
    "token", ["x", "YmVmb3JlOi0x", "YmVmb3JlOjk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "\u00e4", "=" * 9]
)
def test_a_page_token_of_somebody_s_own_is_refused(guarded: Guarded, token: str) -> None:
    with guarded.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        pages = channel.unary_unary(
            METHOD + "ListJobs", request_serializer=pb.ListJobsRequest.SerializeToString
        )
        pages(pb.ListJobsRequest(page_token=token), metadata=guarded.metadata(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_error_carries_its_reason_and_its_violations_for_programs(guarded: Guarded) -> None:
    with guarded.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        submit = channel.unary_unary(
            METHOD + "SubmitJob", request_serializer=pb.SubmitJobRequest.SerializeToString
        )
        submit(
            pb.SubmitJobRequest(name="a", specification="model: 3"), metadata=guarded.metadata(), timeout=10
        )
    status = rpc_status.from_call(caught.value)
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(wrong)
    assert (info.domain, info.reason) == ("lowdimfa", "bad_input")
    assert {entry.field for entry in wrong.field_violations} >= {"specification.model", "specification.data"}


def test_a_token_that_was_taken_back_is_refused_at_the_next_call(guarded: Guarded) -> None:
    path = guarded.folder / "tokens.json"
    before = path.read_text()
    with guarded.client("other") as calls:
        list(calls.jobs(limit=1))
        write_tokens(path, [new_token("admin", "admin")[1]])
        with pytest.raises(AccessError, match="not known"):
            list(calls.jobs(limit=1))
    path.write_text(before)
