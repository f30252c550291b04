"""``lowdimfa certs`` and ``lowdimfa tokens``: what a service needs to be open to a network."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.errors import InputError
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption, expanded

tokens = typer.Typer(help="Make, list and take back the tokens of a service.")


class RoleOption(StrEnum):
    """What a token allows."""

    read = "read"
    submit = "submit"
    admin = "admin"


FileOption = Annotated[
    Path,
    typer.Option(
        "--file", metavar="FILE", parser=expanded, help="Token file, as 'lowdimfa serve --tokens' takes it."
    ),
]
DEFAULT_FILE = Path("tokens.json")


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=expanded, help="Gets the six files.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address by which clients reach the service; may be repeated."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, help="For which the certificates are valid.")] = 365,
    form: FormatOption = Format.text,
) -> None:
    """Make an authority, a certificate for the service and one for its clients."""
    from lowdimfa.services.rpc.certificates import write_certificates

    hosts = host or ["localhost", "127.0.0.1"]
    paths = write_certificates(folder, hosts, days)
    if form is Format.json:
        print(json.dumps({"files": [str(path) for path in paths], "hosts": hosts, "days": days}))
        return
    print(f"written to {folder}, valid for {', '.join(hosts)} and {days:g} days:")
    print("  server.crt, server.key   for 'lowdimfa serve --tls-cert --tls-key'")
    print("  ca.crt                   for clients (--ca), and for serve --client-ca")
    print("  client.crt, client.key   for clients (--client-cert --client-key) where serve has --client-ca")
    print("  ca.key                   keep it off the cluster: whoever has it can make certificates")


@tokens.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is; owner of the jobs.")],
    role: Annotated[RoleOption, typer.Option(help="read: look; submit: also submit; admin: everything.")],
    file: FileOption = DEFAULT_FILE,
    form: FormatOption = Format.text,
) -> None:
    """Make a token and print it, once: the file has only its hash."""
    from lowdimfa.services.coordinator.access import new_token, read_tokens, write_tokens

    entries = read_tokens(file) if file.exists() else []
    if any(entry.name == name for entry in entries):
        raise InputError(
            f"token file {file}", f"a token of {name!r}", "another name", "'lowdimfa tokens remove' first."
        )
    try:
        token, entry = new_token(name, role.value)
    except ValueError as error:
        raise InputError("NAME", f"{name!r}", "letters, digits, '_', '.', '@' and '-', at most 64") from error
    write_tokens(file, [*entries, entry])
    if form is Format.json:
        print(json.dumps({"name": name, "role": role.value, "token": token}))
        return
    print(token)
    note = f"written to {file}; the token is shown only now: give it to {name} as LOWDIMFA_TOKEN"
    print(note, file=sys.stderr)


@tokens.command("list")
def list_tokens(file: FileOption = DEFAULT_FILE, form: FormatOption = Format.text) -> None:
    """Show names and roles."""
    from lowdimfa.services.coordinator.access import read_tokens

    entries = read_tokens(file)
    if form is Format.json:
        print(json.dumps([{"name": entry.name, "role": entry.role} for entry in entries]))
        return
    print(aligned([("name", "role"), *((entry.name, entry.role) for entry in entries)]))


@tokens.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token to take back.")],
    file: FileOption = DEFAULT_FILE,
) -> None:
    """Take a token back; a running service notices at its next call."""
    from lowdimfa.services.coordinator.access import read_tokens, write_tokens

    entries = read_tokens(file)
    kept = [entry for entry in entries if entry.name != name]
    if len(kept) == len(entries):
        known = ", ".join(entry.name for entry in entries) or "none"
        raise InputError(f"token file {file}", f"no token of {name!r}", f"one of: {known}")
    write_tokens(file, kept)
    print(f"removed the token of {name} from {file}")
