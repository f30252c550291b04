"""What the options of ``lowdimfa serve`` make of a coordinator's settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowdimfa.services.cli import serve as command
from lowdimfa.services.cli.app import app
from lowdimfa.services.coordinator import process
from lowdimfa.services.coordinator.settings import ServeSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """Stand in for the service; give the settings that it is asked to run with."""
    found: list[ServeSettings] = []

    def run(settings: ServeSettings, on_serving: object) -> list[str]:
        found.append(settings)
        return []

    monkeypatch.setattr(process, "serve", run)
    monkeypatch.setattr(command, "outlive", lambda elsewhere: None)  # that is of a whole process
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.delenv("LOWDIMFA_STORAGE", raising=False)
    return found


def served(*words: str) -> None:
    done = CliRunner().invoke(app, ["serve", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_every_option_is_a_setting(asked: list[ServeSettings], tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": 1,
        "http_host": "10.0.0.7",
        "http_port": 2,
        "page_port": 3,
        "storage": str(tmp_path / "runs"),
        "state": tmp_path / "state",
        "ray_address": "10.0.0.8:6379",
        "tls_cert": tmp_path / "a",
        "tls_key": tmp_path / "b",
        "client_ca": tmp_path / "c",
        "tokens": tmp_path / "d",
        "liveness": 4.0,
        "max_queued": 5,
        "max_streams_per_client": 6,
        "job_metrics": "loopback",
    }
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    served(*words, "--insecure")
    assert asked == [ServeSettings(**values, insecure=True)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--host", "10.0.0.7"], {"host": "10.0.0.7", "http_host": "10.0.0.7", "job_metrics": "node"}),
        (["--no-page", "--job-metrics", "node"], {"page_port": None, "job_metrics": "node"}),
        (["--storage", "there"], {"storage": "there", "state": Path("there/.coordinator")}),
    ],
)
def test_what_is_not_said_follows_from_what_is(
    words: list[str], expected: dict[str, Any], asked: list[ServeSettings]
) -> None:
    served(*words)
    assert asked == [ServeSettings(**{"page_port": 9465} | expected)]


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([], False),
        (["--host", "0.0.0.0"], True),
        (["--http-host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--http-host", "::1"], False),
    ],
)
def test_an_operator_hears_of_pages_that_everybody_can_read(
    words: list[str], warned: bool, asked: list[ServeSettings], caplog: pytest.LogCaptureFixture
) -> None:
    served(*words, "--http-port", "9464", "--no-page")
    assert [("0.0.0.0, port 9464" in line, "without TLS" in line) for line in caplog.messages] == (
        [(True, True)] * warned
    )
