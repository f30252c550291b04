"""``lowdimfa``: the entry point, and how every error ends."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import click
import typer

from lowdimfa.errors import LowdimfaError
from lowdimfa.version import VERSION
from services.cli import data, evaluate, export, report, train

INTERRUPTED = 130
"""Exit code after SIGINT or SIGTERM, as shells have it."""

app = typer.Typer(
    help="Train networks in blocks that learn from one low-dimensional error broadcast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("report")(report.report)
app.add_typer(data.app, name="data")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lowdimfa {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; a typed error becomes one message and its documented exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
    except LowdimfaError as error:
        typer.echo(f"lowdimfa: {error.message}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        typer.echo("lowdimfa: interrupted; add --resume with the same --run-dir to go on.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
