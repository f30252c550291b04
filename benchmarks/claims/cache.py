"""What finished runs gave, kept in a file, so that a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lowdimfa.version import VERSION


class RunCache:
    """Records by what decides them, as lines of JSON.

    The key doesn't have the source code: after a change of a rule the records are those of the old one.

    Parameters
    ----------
    path
        The file, or None to keep records in memory alone.
    fresh
        Whether to disregard what the file has. Later lines count, so that what is measured anew replaces it.

    Several processes may keep records in one file.
    """

    def __init__(self, path: Path | None = None, fresh: bool = False) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        self._read_to = 0
        if path is not None and path.exists():
            content = path.read_bytes()
            # A run was killed while it wrote; others may be writing.
            if content and not content.endswith(b"\n"):
                with path.open("ab", buffering=0) as file:
                    file.write(b"\n")
            if fresh:
                self._read_to = path.stat().st_size
        self.refresh()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key, or None."""
        return self._records.get(key)

    def put(self, key: str, about: Mapping[str, Any], record: dict[str, Any]) -> None:
        """Keep a record; ``about`` says to a reader of the file what it is of."""
        self._records[key] = record
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, "about": about, "record": record}) + "\n"
            with self._path.open("ab", buffering=0) as file:  # in one piece: others may be writing too
                file.write(line.encode())

    def refresh(self) -> None:
        """Read what other processes have kept since."""
        if self._path is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # another one may be writing its line
        self._read_to += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                self._records[entry["key"]] = entry["record"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that wasn't written whole: its run is made again


def key_of(about: Mapping[str, Any], device: torch.device) -> str:
    """Return the key of a run: a digest of its configuration, the versions and the kind of device."""
    whole = {**about, "device": device.type, "torch": torch.__version__, "lowdimfa": VERSION}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
