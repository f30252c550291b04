"""``lowdimfa doctor``: what is there, and what would fail."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import lowdimfa
from lowdimfa.errors import ResourceError
from lowdimfa.services.cli.doctor import machine, reading, software
from lowdimfa.services.cli.doctor.finding import Finding, State, ok
from lowdimfa.services.cli.options import Format, FormatOption, StorageOption
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.version import VERSION

Address = Annotated[
    str | None, typer.Option(help="Ray cluster whose nodes are looked at too, as 'train --address' takes it.")
]
Liveness = Annotated[
    float, typer.Option(min=0.1, help="Seconds within which each node, and an object store, has to answer.")
]

_PORTS = ((50051, "--port"), (9464, "--http-port"), (9465, "--page-port"))
"""Those of 'lowdimfa serve', and the option that sets each."""

_STATE_WIDTH, _CHECK_WIDTH = 9, 16


def doctor(
    storage: StorageOption = "runs",
    address: Address = None,
    liveness: Liveness = 30.0,
    form: FormatOption = Format.text,
) -> None:
    """Say what is there to train with, what would fail, and what to do about it."""
    worst: list[Finding] = []
    show = as_json if form is Format.json else as_text
    for finding in _examined(storage, address, liveness):
        print(show(finding))
        sys.stdout.flush()
        if finding.state is State.problem:
            worst.append(finding)
    if worst:
        named = ", ".join(finding.check for finding in worst)
        number = "1 problem" if len(worst) == 1 else f"{len(worst)} problems"
        raise ResourceError(f"{number} would stop a run: {named}")


def _examined(storage: str, address: str | None, liveness: float) -> Iterator[Finding]:
    loading = software.begin_loading()
    try:
        yield ok("lowdimfa", f"{VERSION} in {Path(str(lowdimfa.__file__)).parent}")
        yield software.python(sys.version_info[:3])
        needed, extras = software.read_packages()
        yield software.packages(needed)
        for name, asked in extras.items():
            yield software.extra(name, asked)
        yield from _of_the_machine(storage, liveness)
        loaded = software.end_loading(loading)
        yield software.libraries(loaded)
        yield software.gpus(software.read_driver(), loaded)
    finally:
        loading.kill()
        loading.wait()
    if address is not None:
        from lowdimfa.services.cli.doctor.nodes import cluster  # Ray takes a second

        yield from cluster(address, liveness)


def _of_the_machine(storage: str, liveness: float) -> Iterator[Finding]:
    available = reading.available_memory()
    yield machine.memory(available)
    yield machine.shared_memory(reading.free_shared_memory(), available)
    yield machine.open_files(reading.most_open_files())
    yield machine.threads(*reading.free_threads())
    if is_address(storage):
        yield machine.objects(storage, reading.store(storage, liveness))
    else:
        yield machine.storage(reading.disk(Path(storage)))
    yield machine.temporary(reading.temporary())
    yield machine.cache(reading.cache())
    own = reading.own_address()
    yield machine.listening("loopback", "127.0.0.1", reading.listen("127.0.0.1"))
    yield machine.listening("own address", own, reading.listen(own))
    for number, option in _PORTS:
        yield machine.port(number, option, reading.listen("127.0.0.1", number, connect=False))
    before = time.monotonic()
    yield machine.clock(time.time(), before, time.monotonic())


def as_json(finding: Finding) -> str:
    """Return a finding as one line of JSON."""
    return json.dumps({"event": "finding"} | asdict(finding))


def as_text(finding: Finding) -> str:
    """Return state and check in columns of their own, and beside them what was found and what to do."""
    head = f"{finding.state:<{_STATE_WIDTH}}{finding.check:<{_CHECK_WIDTH}}  "
    indent = " " * (_STATE_WIDTH + _CHECK_WIDTH + 2)
    width = max(len(head) + 30, shutil.get_terminal_size().columns)
    wrapped = partial(
        textwrap.fill,
        width=width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [wrapped(finding.found, initial_indent=head)]
    return "\n".join(lines + [wrapped(finding.todo, initial_indent=indent)] * bool(finding.todo))
