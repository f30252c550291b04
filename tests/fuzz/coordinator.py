"""What the job service takes from clients, and from the logs of runs, which users' code may write to."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from lowdimfa.services.coordinator.jobs import Job, JobState
from lowdimfa.services.coordinator.messages import (
    event_to_message,
    job_fields,
    job_to_message,
    message_to_event,
)
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.coordinator.rows import columns_of, progress_of
from lowdimfa.services.coordinator.store import JobEvent
from lowdimfa.services.coordinator.submissions import checked
from lowdimfa.services.monitoring.journal import Journal, Position
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from tests.fuzz.guard import Finding
from tests.fuzz.mutate import change_message, change_tree, is_repeated
from tests.fuzz.specification import SMALL
from tests.fuzz.specification import mutate as mutate_specification

MOST_METADATA = 8 << 10
"""Bytes of metadata that gRPC lets through to a client that asks for nothing else."""


def decode_submission(data: bytes) -> None:
    """Check a submission; a refusal must reach the client."""
    request = pb.SubmitJobRequest.FromString(data)
    try:
        submission, _ = checked(request, "owner")
    except RefusedError as refusal:
        status = refusal.as_status()
        size = len(status.details.encode()) + sum(
            len(value) * 4 // 3 for _, value in status.trailing_metadata
        )
        if size > MOST_METADATA:
            raise Finding(f"a refusal of {size} bytes, which no client receives") from refusal
        raise
    json.dumps(submission.files).encode()


def submission_seeds() -> Iterator[bytes]:
    """Yield submissions as the client sends them."""
    files = [pb.SourceFile(path=path, content="x = 1\n") for path in ("a.py", "pkg/__init__.py", "pkg/b.py")]
    for spec in (SMALL, f"{SMALL}feedback: {{form: local}}\n", "a: 1\nb: 2\n"):
        yield pb.SubmitJobRequest(name="job-1", specification=spec, client_key="k").SerializeToString()
        yield pb.SubmitJobRequest(name="job_2", specification=spec, files=files).SerializeToString()


def mutate_submission(data: bytes, draw: random.Random) -> bytes | None:
    """Change a field, or the specification as its own target does."""
    try:
        request = pb.SubmitJobRequest.FromString(data)
    except DecodeError:
        return None
    if draw.random() < 0.3:
        changed = mutate_specification(request.specification.encode(), draw)
        if changed is not None:
            request.specification = changed.decode(errors="replace")
    else:
        change_message(request, draw)
    return bytes(request.SerializeToString())


def decode_event(data: bytes) -> None:
    """Take in a line of a run's log, and show it to a client; the failed event becomes its job's error too."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.path.write_bytes(data.replace(b"\n", b" ") + b"\n")
        (event,), _, _ = journal.after(Position(0))
    stored = json.loads(json.dumps(event, default=str))
    message = event_to_message(JobEvent(1, stored))
    shown = message_to_event(pb.JobEvent.FromString(message.SerializeToString()))
    json.dumps(shown).encode()
    told = progress_of([event])
    error = event if event["event"] == "failed" else None
    columns_of(told | {"error": error})
    job = Job(
        "id", "name", "owner", JobState.failed, "", time.time(), "/runs/id", 1.0, 0.0, error=error, **told
    )
    json.dumps(job_fields(pb.Job.FromString(job_to_message(job).SerializeToString()))).encode()


def event_seeds() -> Iterator[bytes]:
    """Yield one line of each kind of event."""
    for kind in pb.JobEvent.DESCRIPTOR.oneofs_by_name["event"].fields:
        event = pb.JobEvent(sequence=1)
        inner = getattr(event, kind.name)
        inner.SetInParent()
        fields = {field.name: _example(field) for field in inner.DESCRIPTOR.fields}
        yield json.dumps({"event": kind.name, "time": 1.5, **fields}).encode()
    yield b'{"event": "recovered", "missed": {"1": 7}, "time": null}'


def _example(field: Any) -> object:
    kind = getattr(field, "type", 0)
    value: object = "words" if kind == 9 else 0.5 if kind in (1, 2) else True if kind == 8 else 3
    if getattr(field, "message_type", None) is not None:
        value = {}
    return [value] if is_repeated(field) else value


def mutate_event(data: bytes, draw: random.Random) -> bytes | None:
    """Change one place of the tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return json.dumps(change_tree(tree, draw)).encode()
