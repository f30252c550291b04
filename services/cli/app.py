"""All commands, and how every error of theirs ends.

A command's module is loaded when the command is called. It has the command's options and what it shows, and needs
neither torch nor Ray nor matplotlib: what a command runs is imported by its function. So a help text, a mistyped option
and all commands that train nothing are there at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.cli.output import UNREAD, OutputLostError
from lowdimfa.version import VERSION

_COMMANDS = {
    "init": "init:init",
    "train": "train:train",
    "plan": "plan:plan",
    "drill": "drill:drill",
    "evaluate": "evaluate:evaluate",
    "export": "export:export",
    "report": "report:report",
    "simulate": "simulate:simulate_command",
    "serve": "serve:serve",
    "submit": "jobs:submit",
    "jobs": "jobs:jobs",
    "status": "jobs:status",
    "watch": "jobs:watch",
    "stop": "jobs:stop",
    "resume": "jobs:resume",
    "logs": "jobs:logs",
    "certs": "secrets:certs",
    "data": "data:app",
    "doctor": "doctor.command:doctor",
    "tokens": "secrets:tokens",
}
"""The module of each, and its function or group of commands there, in the order of the help."""

_STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}

# Click's, or those of the copy of Click that newer versions of typer bring.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class _Commands(TyperGroup):
    """The commands of the table."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Among these names typer looks for one that a mistyped one may have meant.
        self.commands = cast(Any, dict.fromkeys(_COMMANDS))
        self._names_alone = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what completes a word here, names without help: no command's module is loaded for its name."""
        self._names_alone = True
        return super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and say so where it is interrupted: typer turns that into an exit code without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("lowdimfa: stopped", file=sys.stderr)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command; None if there is none of this name."""
        if cmd_name not in _COMMANDS:
            return None
        if self._names_alone:
            return TyperCommand(cmd_name)
        module, _, name = _COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(f"lowdimfa.services.cli.{module}"), name)
        alone = typer.Typer(**_STYLE)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=cmd_name)
        else:
            alone.command(cmd_name)(found)
        return cast(Any, typer.main.get_group(alone)).commands[cmd_name]


app = typer.Typer(
    cls=_Commands,
    help="Train networks in blocks that learn from one low-dimensional error broadcast.",
    **_STYLE | {"add_completion": True},
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"lowdimfa {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def run() -> int:
    """Run the command that the arguments name and return the exit code; an error becomes one message."""
    try:
        code = app(standalone_mode=False)
    except OutputLostError as error:
        if error.unread:
            return UNREAD
        print(f"lowdimfa: {error}", file=sys.stderr)
        return ResourceError.exit_code
    except LowdimfaError as error:
        print(f"lowdimfa: {error.message}", file=sys.stderr)
        return error.exit_code
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "lowdimfa"
        print(f"lowdimfa: {error.format_message().rstrip('.')}; see '{command} --help'.", file=sys.stderr)
        return error.exit_code
    return code if isinstance(code, int) else 0
