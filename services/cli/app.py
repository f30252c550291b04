"""All commands, and how every error of theirs ends."""

from __future__ import annotations

import sys
from typing import Annotated, cast

import typer

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.cli import (
    data,
    drill,
    evaluate,
    export,
    jobs,
    plan,
    report,
    secrets,
    serve,
    simulate,
    train,
)
from lowdimfa.services.cli.output import UNREAD, OutputLostError
from lowdimfa.version import VERSION

# Click's, or that of the copy of Click that newer versions of typer bring.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    help="Train networks in blocks that learn from one low-dimensional error broadcast.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("drill")(drill.drill)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("simulate")(simulate.simulate_command)
app.add_typer(data.app, name="data")
app.command("serve")(serve.serve)
for command in (jobs.submit, jobs.jobs, jobs.status, jobs.watch, jobs.stop, jobs.resume, jobs.logs):
    app.command(command.__name__)(command)
app.command("certs")(secrets.certs)
app.add_typer(secrets.tokens, name="tokens")


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
