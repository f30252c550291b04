"""The commands for jobs: submit, jobs, status, watch, stop, resume, logs."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lowdimfa.errors import InputError, StoppedError
from lowdimfa.services.cli import completing
from lowdimfa.services.cli.connection import connected
from lowdimfa.services.cli.display import Display, JsonDisplay, TextDisplay
from lowdimfa.services.cli.jobs_display import file_lines, job_lines, jobs_table
from lowdimfa.services.cli.options import Format, FormatOption, OverridesOption, SpecArgument
from lowdimfa.services.cli.output import OutputLostError, claim_stdout
from lowdimfa.services.coordinator.jobs import ENDS, JobState

if TYPE_CHECKING:
    from lowdimfa.services.coordinator.client import CoordinatorClient

JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        autocompletion=completing.jobs,
        help="Id of a job, or its beginning if no other begins so.",
    ),
]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show the job's progress until its end.")]


@connected
def submit(
    client: CoordinatorClient,
    spec: SpecArgument,
    overrides: OverridesOption = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the job; by default the file's name.")
    ] = None,
    idempotency_key: Annotated[
        str, typer.Option(help="Submit once, however often this is called with the same key.")
    ] = "",
    watch: WatchOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check SPEC, show which files would be sent, and stop.")
    ] = False,
    form: FormatOption = Format.text,
) -> None:
    """Put a job into the queue of the service. Python files beside SPEC are sent with it."""
    from lowdimfa.services.run.user_code import Modules
    from lowdimfa.services.spec import load_specification
    from lowdimfa.services.spec.load import to_yaml

    specification = load_specification(spec, overrides or [])
    beside = Modules.beside(spec.resolve().parent)
    job_name = name or default_name(spec)
    if dry_run:
        if form is Format.json:
            found = {"name": job_name, "files": sorted(beside.files), "left_out": beside.left_out}
            print(json.dumps(found))
        else:
            print("\n".join([f"would be submitted as {job_name}", *file_lines(beside, "would be sent")]))
        return
    job, created = client.submit(job_name, to_yaml(specification), beside.files, idempotency_key)
    if form is Format.json and not watch:
        print(json.dumps({"job": job, "created": created, "files": sorted(beside.files)}))
        return
    for line in file_lines(beside, "sent"):
        print(line, file=sys.stderr)
    note = f"submitted {job['id']}" if created else f"submitted before as {job['id']}"
    print(note, file=sys.stderr if form is Format.json else sys.stdout)
    if watch:
        _watch(client, job["id"], 0, form)


@connected
def jobs(
    client: CoordinatorClient,
    state: Annotated[
        list[JobState] | None, typer.Option("--state", help="Only jobs in this state; may be repeated.")
    ] = None,
    owner: Annotated[str, typer.Option(help="Only jobs of this owner.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    form: FormatOption = Format.text,
) -> None:
    """List jobs, the newest first."""
    found = list(client.jobs(state or (), owner, limit=limit))
    if form is Format.json:
        for job in found:
            print(json.dumps(job))
    elif found:
        console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        for line in jobs_table(found):
            if console.is_terminal:
                line.truncate(console.width, overflow="ellipsis")
            console.print(line)
    else:
        print("no jobs")


@connected
def status(client: CoordinatorClient, job: JobArgument, form: FormatOption = Format.text) -> None:
    """Show one job."""
    found = client.get(find(client, job))
    print(json.dumps(found) if form is Format.json else "\n".join(job_lines(found)))


@connected
def watch(
    client: CoordinatorClient,
    job: JobArgument,
    after: Annotated[int, typer.Option(min=0, metavar="SEQUENCE", help="Only events after this one.")] = 0,
    form: FormatOption = Format.text,
) -> None:
    """Show a job's events from its start until its end; the exit code is that of the job."""
    _watch(client, find(client, job), after, form)


@connected
def stop(
    client: CoordinatorClient,
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
    form: FormatOption = Format.text,
) -> None:
    """Stop a job: it finishes its step, writes a checkpoint, and ends."""
    _say(client.stop(find(client, job), now), form)


@connected
def resume(
    client: CoordinatorClient, job: JobArgument, watch: WatchOption = False, form: FormatOption = Format.text
) -> None:
    """Put a stopped or failed job back into the queue, to go on from its newest checkpoint."""
    resumed = client.resume(find(client, job))
    if not watch or form is Format.text:
        _say(resumed, form)
    if watch:
        _watch(client, resumed["id"], resumed["last_sequence"] - 1, form)


@connected
def logs(
    client: CoordinatorClient,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job's end.")] = False,
    tail: Annotated[
        int, typer.Option(min=0, metavar="LINES", help="Only the last lines of each process; 0 for all.")
    ] = 0,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Only this process, such as trainer or block-0-replica-1."),
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Show what the processes of a job wrote."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    silent = True
    for name, text in client.logs(find(client, job), tail, follow, source or ()):
        silent = False
        if form is Format.json:
            print(json.dumps({"source": name, "text": text}))
        else:
            console.print(f"{name:>9} ", style=_colour(name), end="", markup=False)
            console.print(text, markup=False)
    if silent:
        print("no output", file=sys.stderr)


def default_name(spec: Path) -> str:
    """Return what a job is called after its specification's file: letters, digits, ``-`` and ``_``, at most 63."""
    plain = unicodedata.normalize("NFKD", spec.stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:63].rstrip("-_") or "job"


def find(client: CoordinatorClient, beginning: str) -> str:
    """Return the id of the one job whose id begins so.

    Raises
    ------
    InputError
        None does, or several do.
    """
    begun: list[str] = []
    # An id begins with the job's name, so that only jobs of that name, or of one that begins so, can be meant.
    for job in client.jobs(name_prefix=beginning.rpartition("-")[0] or beginning):
        if job["id"] == beginning:
            return beginning
        if job["id"].startswith(beginning):
            begun.append(job["id"])
    if len(begun) == 1:
        return begun[0]
    if begun:
        shown = ", ".join(begun[:5]) + (", …" if len(begun) > 5 else "")
        raise InputError(
            f"job {beginning!r}", f"{len(begun)} jobs that begin so: {shown}", "the beginning of one"
        )
    raise InputError(f"job {beginning!r}", "no such job", "an id that 'lowdimfa jobs' lists")


def _watch(client: CoordinatorClient, job_id: str, after: int, form: Format) -> None:
    display: Display = JsonDisplay(claim_stdout()) if form is Format.json else TextDisplay(sys.stdout)
    failure: dict[str, Any] = {}
    try:
        with display:
            display.show({"event": "starting"})
            for event in client.watch(job_id, after):
                if event["event"] == "failed":
                    failure = event
                elif event.get("state") == JobState.queued:  # what an earlier attempt came to is past
                    failure = {}
                display.show(event)
    except (KeyboardInterrupt, OutputLostError) as error:
        print(f"job {job_id} goes on; 'lowdimfa watch {job_id}' shows it again", file=sys.stderr)
        if isinstance(error, OutputLostError):
            raise
        raise typer.Exit(130) from None
    job = client.get(job_id)
    if job["state"] == JobState.stopped:
        if failure.get("setting"):  # of the checkpoint that it would go on from
            raise StoppedError(f"job {job_id} was {failure['message']}")
        raise StoppedError(f"job {job_id} was stopped; 'lowdimfa resume {job_id}' goes on")
    if job["state"] == JobState.failed and job["error"]:
        print(f"lowdimfa: job {job_id}: {job['error']['message']}", file=sys.stderr)
        raise typer.Exit(job["error"]["exit_code"] or 1)


def _say(job: dict[str, Any], form: Format) -> None:
    if form is Format.json:
        print(json.dumps(job))
        return
    detail = f": {job['detail']}" if job["detail"] else ""
    ended = "" if JobState(job["state"]) in ENDS else f"; 'lowdimfa watch {job['id']}' shows it"
    print(f"{job['id']} is {job['state']}{detail}{ended}")


def _colour(source: str) -> str:
    colours = ("cyan", "green", "magenta", "yellow", "blue", "red")
    block = source.removeprefix("block-").partition("-")[0]  # its replicas have its colour
    return colours[int(block) % len(colours)] if block.isdecimal() else "bold"
