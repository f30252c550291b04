"""What the commands take for a path, a time or a token, and what they refuse before anything is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from cryptography import x509
from typer.testing import CliRunner

from lowdimfa.errors import InputError
from lowdimfa.services.cli.app import app
from lowdimfa.services.cli.connection import connection_of
from lowdimfa.services.cli.options import expanded, placed


@pytest.mark.parametrize("text", ["", " ", "$LOWDIMFA_NOT_SET"])
def test_nothing_is_no_path(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell makes of a variable that isn't set: it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    for read in (expanded, placed):
        with pytest.raises(typer.BadParameter):
            read(text)
    for command in (["train", "spec.yaml", "--run-dir", text], ["evaluate", text], ["certs", text]):
        assert CliRunner().invoke(app, command).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_path_and_a_home_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text in ("file:///tmp/x", "s3://bucket/x", "other://x"):
        with pytest.raises(typer.BadParameter):
            expanded(text)
    assert CliRunner().invoke(app, ["certs", "~/tls"], catch_exceptions=False).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "tls" / "ca.key").exists()


@pytest.mark.parametrize("days", ["7", "0.5"])
def test_certificates_are_valid_for_the_days_that_were_asked_for(days: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["certs", str(tmp_path / "tls"), "--days", days], catch_exceptions=False)
    assert f"{days} days" in done.output
    for name in ("ca", "server", "client"):
        made = x509.load_pem_x509_certificate((tmp_path / "tls" / f"{name}.crt").read_bytes())
        length = (made.not_valid_after_utc - made.not_valid_before_utc).total_seconds() / 86_400
        assert float(days) <= length < float(days) + 0.1


@pytest.mark.parametrize("seconds", ["inf", "1e300", "nan", "0"])
@pytest.mark.parametrize("command", ["jobs", "serve"])
def test_a_liveness_is_a_time_that_somebody_would_wait(
    command: str, seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, [command, "--liveness", seconds]).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", ["one two", "sec\nret", "tökén", "a\x07b"])
def test_what_no_token_is_is_refused_and_not_shown(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text(token, encoding="utf-8")
    monkeypatch.setenv("LOWDIMFA_TOKEN", token)
    for values, where in (({}, "LOWDIMFA_TOKEN"), ({"token_file": path}, "--token-file")):
        with pytest.raises(InputError, match=where) as caught:
            connection_of(values)
        assert token not in str(caught.value)
