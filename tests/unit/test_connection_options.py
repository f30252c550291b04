"""The options of the commands that talk to the job service: what they make of the connection, and what is no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowdimfa.errors import InputError
from lowdimfa.services.cli.app import app
from lowdimfa.services.cli.connection import DEFAULT_ADDRESS, connection_of
from lowdimfa.services.coordinator import client
from lowdimfa.services.coordinator.client import Connection

VARIABLES = {
    "--coordinator": "LOWDIMFA_COORDINATOR",
    "--token-file": "LOWDIMFA_TOKEN_FILE",
    "--ca": "LOWDIMFA_CA",
    "--tls": "LOWDIMFA_TLS",
    "--client-cert": "LOWDIMFA_CLIENT_CERT",
    "--client-key": "LOWDIMFA_CLIENT_KEY",
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """Stand in for the client, without any service; give the connections that are asked for."""
    asked: list[Connection] = []

    class Alone:
        def __init__(self, connection: Connection) -> None:
            asked.append(connection)

        def __enter__(self) -> Alone:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def jobs(self, *_: object, **__: object) -> Iterator[dict[str, object]]:
            return iter(())

    monkeypatch.setattr(client, "CoordinatorClient", Alone)
    for name in (*VARIABLES.values(), "LOWDIMFA_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_every_option_and_every_variable_is_one_of_the_connection(
    made: list[Connection], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret\n")
    values = {"--coordinator": "a.example:7", "--tls": "1"}
    values |= {
        name: str(tmp_path / file)
        for name, file in (
            ("--token-file", "token"),
            ("--ca", "a"),
            ("--client-cert", "b"),
            ("--client-key", "c"),
        )
    }
    options = [
        word for name, value in values.items() for word in ([name] if name == "--tls" else [name, value])
    ]
    more = ["--insecure", "--liveness", "7"]
    for words, variables in (
        ([*options, *more], {}),
        (more, {VARIABLES[name]: value for name, value in values.items()}),
        ([*options, *more], {"LOWDIMFA_COORDINATOR": "b.example:8", "LOWDIMFA_TOKEN": "another"}),
    ):
        done = CliRunner().invoke(app, ["jobs", *words], env=variables, catch_exceptions=False)
        assert done.output == "no jobs\n"
        assert made.pop() == Connection(
            "a.example:7", "secret", tmp_path / "a", True, tmp_path / "b", tmp_path / "c", True, 7.0
        )
    CliRunner().invoke(app, ["jobs"], env={"LOWDIMFA_TOKEN": " secret\n"}, catch_exceptions=False)
    assert made == [Connection(DEFAULT_ADDRESS, "secret")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no token"),
        (b" \n", "no token"),
        (b"one two", "more than a token"),
        (b"one\ntwo", "more than a token"),
        (b"\xff", "a file that can't be read"),
        (None, "a file that can't be read .*No such file"),
    ],
)
def test_a_file_without_one_token_is_refused_and_not_shown(
    text: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=f"--token-file .*token: found {words}") as caught:
        connection_of({"token_file": path})
    assert "one two" not in str(caught.value)


@pytest.mark.parametrize("address", ["host", ":50051", "host:", "host:port", "host:65536"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InputError, match=r"--coordinator: found .*a host and a port"):
        connection_of({"coordinator": address})
