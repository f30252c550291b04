"""The list of a job's processes that Prometheus can scrape: written by the trainer, read by whoever hands it on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from lowdimfa.services.monitoring.line_file import open_regular

MOST_BYTES = 1 << 20
"""Of a list that is read: some thousand processes."""

_log = logging.getLogger(__name__)


class Target(TypedDict):
    """One process to scrape: ``address`` is ``host:port``, ``role`` is block, head or trainer."""

    address: str
    job: str
    role: str
    block: NotRequired[str]
    replica: NotRequired[str]


def entries(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return targets as Prometheus' service discovery, of files or over HTTP, has them."""
    return [
        {"targets": [target["address"]], "labels": {k: v for k, v in target.items() if k != "address"}}
        for target in targets
    ]


def write_targets(path: Path, targets: Iterable[Target]) -> None:
    """Write a target file for Prometheus' file-based service discovery, in place of the old one.

    The file is renamed into place, so a reader sees the old or the new one; its folder is made. Prometheus may run as
    another user: the file has its rights by the umask. A finished run writes none. A disk that has no room for it is
    only a line in the log: nobody trains worse for it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(entries(targets), indent=2))
    except OSError as error:
        _log.warning("Prometheus will not find this run: %s can't be written (%s)", path, error.strerror)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def read_targets(path: Path, job: str) -> list[Target]:
    """Return the processes that a target file lists; a job's own code may have put anything there.

    Parameters
    ----------
    path
        The file, which is no link in a folder that is none; where that folder lies is the operator's.
    job
        Whose it is, whatever the file says. Of other labels only those of a `Target` are taken: Prometheus obeys some.

    Raises
    ------
    FileNotFoundError
        There is none.
    OSError
        It is no file, or can't be read.
    ValueError
        It isn't as `write_targets` writes it, or larger than `MOST_BYTES`.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = open_regular(path.name, follow=False, folder=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    try:
        return [_target(entry, job) for entry in json.loads(text)]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no list of targets ({error})") from error


def _target(entry: dict[str, Any], job: str) -> Target:
    [address] = entry["targets"]
    told: dict[str, Any] = entry["labels"]
    labels = {name: told[name] for name in ("role", "block", "replica") if name in told}
    if not all(isinstance(text, str) for text in (address, labels["role"], *labels.values())):
        raise ValueError("what should be text is none")
    return cast(Target, {"address": address, "job": job, **labels})
