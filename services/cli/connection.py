"""Options of the commands that talk to the job service."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdimfa.errors import InputError
from lowdimfa.services.cli.options import MOST_LIVENESS, expanded

if TYPE_CHECKING:
    from lowdimfa.services.coordinator.client import Connection

DEFAULT_ADDRESS = "127.0.0.1:50051"

CoordinatorOption = Annotated[
    str,
    typer.Option(
        "--coordinator", metavar="HOST:PORT", envvar="LOWDIMFA_COORDINATOR", help="Where the service is."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        parser=expanded,
        envvar="LOWDIMFA_TOKEN_FILE",
        help="File with the token; the variable LOWDIMFA_TOKEN may have the token itself.",
    ),
]
AuthorityOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        parser=expanded,
        envvar="LOWDIMFA_CA",
        help="Authority of the service's certificate.",
    ),
]
TlsOption = Annotated[
    bool, typer.Option("--tls", envvar="LOWDIMFA_TLS", help="TLS with the authorities this machine trusts.")
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        metavar="FILE",
        parser=expanded,
        envvar="LOWDIMFA_CLIENT_CERT",
        help="This client's certificate.",
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--client-key",
        metavar="FILE",
        parser=expanded,
        envvar="LOWDIMFA_CLIENT_KEY",
        help="The certificate's private key.",
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Talk in the clear to another machine, token and all.")
]
LivenessOption = Annotated[
    float,
    typer.Option(
        "--liveness", min=0.1, max=MOST_LIVENESS, help="Seconds after which a silent service counts as lost."
    ),
]


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "coordinator": (CoordinatorOption, DEFAULT_ADDRESS),
    "token_file": (TokenFileOption, None),
    "ca": (AuthorityOption, None),
    "tls": (TlsOption, False),
    "client_cert": (CertificateOption, None),
    "client_key": (KeyOption, None),
    "insecure": (InsecureOption, False),
    "liveness": (LivenessOption, 30.0),
}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of the connection, and a client made of them as its first argument."""
    own = [
        parameter.replace(annotation=eval(parameter.annotation, command.__globals__))
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + options

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        from lowdimfa.services.coordinator.client import CoordinatorClient

        given = {name: arguments.pop(name) for name in _OPTIONS}
        with CoordinatorClient(connection_of(given)) as client:
            command(client, **arguments)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def connection_of(given: Mapping[str, Any]) -> Connection:
    """Return the connection that the options ask for.

    Parameters
    ----------
    given
        Their values by name; where one is missing, its default.

    Raises
    ------
    InputError
        An address or a file can't be used.
    """
    from lowdimfa.services.coordinator.client import Connection

    values = {name: given.get(name, default) for name, (_, default) in _OPTIONS.items()}
    return Connection(
        address=_address(values["coordinator"]),
        token=_token(values["token_file"]),
        authority=values["ca"],
        tls=values["tls"],
        certificate=values["client_cert"],
        key=values["client_key"],
        insecure=values["insecure"],
        liveness=values["liveness"],
    )


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InputError("--coordinator", f"{text!r}", f"a host and a port, such as {DEFAULT_ADDRESS}")
    return text


def _token(path: Path | None) -> str:
    """Return the token; it is no option, since every user of a machine can read the options of a process."""
    if path is None:
        token = os.environ.get("LOWDIMFA_TOKEN", "").strip()
        return _checked(token, "LOWDIMFA_TOKEN") if token else ""
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--token-file {path}", f"a file that can't be read ({error})", "a file with a token"
        ) from error
    return _checked(token, f"--token-file {path}")


def _checked(token: str, where: str) -> str:
    if not token or any(character.isspace() for character in token):
        raise InputError(where, "no token" if not token else "more than a token", "one token")
    if not (token.isascii() and token.isprintable()):
        raise InputError(where, "characters that no token has", "one, as 'lowdimfa tokens add' prints it")
    return token
