"""Jobs and events, between plain data and protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.jobs import Event, Job, JobState
from lowdimfa.services.coordinator.store import JobEvent
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb

_STATES: dict[JobState, pb.JobState] = {
    state: cast("pb.JobState", pb.JobState.Value(f"JOB_STATE_{state.upper()}")) for state in JobState
}
_NAMES: dict[int, JobState] = {number: state for state, number in _STATES.items()}
_UNFIT = (ParseError, ValueError, KeyError, TypeError, RecursionError)
_KINDS = frozenset(field.name for field in pb.JobEvent.DESCRIPTOR.oneofs_by_name["event"].fields)


def state_to_message(state: JobState) -> pb.JobState:
    """Return a state as the enum of the protocol."""
    return _STATES[state]


def state_of(number: int) -> JobState | None:
    """Return the state that a number of the enum stands for; None for one that this version doesn't know."""
    return _NAMES.get(number)


def job_to_message(job: Job, detail: str | None = None) -> pb.Job:
    """Return a job as a message, with another detail where one is given."""
    message = pb.Job(
        id=job.id,
        name=job.name,
        owner=job.owner,
        state=_STATES[job.state],
        detail=job.detail if detail is None else detail,
        attempt=job.attempt,
        step=job.step,
        steps=job.steps,
        loss=job.loss,
        test_accuracy=job.test_accuracy,
        last_sequence=job.last_sequence,
        run_dir=job.run_dir,
    )
    if job.error is not None:
        _fill_error(message.error, job.error)
    for name in ("created", "started", "ended"):
        seconds = getattr(job, name)
        if seconds is not None:
            getattr(message, name).CopyFrom(_timestamp(seconds))
    return message


def job_fields(message: pb.Job) -> dict[str, Any]:
    """Return a job's message as plain data, as ``--format json`` prints it; times are Unix seconds."""
    fields = _plain(message)
    state = state_of(message.state)
    return fields | {
        "state": str(state) if state is not None else f"unknown ({message.state})",
        "error": _plain(message.error) if message.HasField("error") else None,
        **{
            name: _seconds(getattr(message, name)) if message.HasField(name) else None
            for name in ("created", "started", "ended")
        },
    }


def event_to_message(numbered: JobEvent) -> pb.JobEvent:
    """Return an event as a message; one that doesn't fit the protocol becomes a warning, as its sequence must come."""
    event = numbered.event
    kind = str(event.get("event"))
    message = pb.JobEvent(sequence=numbered.sequence, time=_timestamp(event.get("time")))
    try:
        if kind not in _KINDS:
            raise ParseError("an unknown kind")
        fields: Event = {name: value for name, value in event.items() if name not in ("event", "time")}
        if kind == "state":
            fields["state"] = _STATES[JobState(fields["state"])]
        getattr(message, kind).SetInParent()
        _fill(getattr(message, kind), fields)
    except _UNFIT as error:
        message.ClearField(message.WhichOneof("event") or "warning")
        message.warning.message = f"the run logged an event '{kind[:40]}' that can't be shown ({error})"[:500]
    return message


def message_to_event(message: pb.JobEvent) -> Event:
    """Return an event's message as plain data: the run's own event, with its ``sequence``."""
    kind = message.WhichOneof("event") or "warning"
    fields = _plain(getattr(message, kind))
    if kind == "state":
        fields["state"] = str(state_of(message.state.state) or f"unknown ({message.state.state})")
    return {
        "event": kind,
        "time": _seconds(message.time),
        "sequence": message.sequence,
        **fields,
    }


def _fill_error(message: pb.Failed, error: Event) -> None:
    """Fill in how a job failed; what its run logged of that may not fit the protocol."""
    try:
        _fill(message, error)
    except _UNFIT as unfit:
        message.Clear()
        message.code, message.exit_code = LowdimfaError.code, LowdimfaError.exit_code
        message.message = f"the run logged a failure that can't be shown ({unfit})"[:500]


def _fill(message: Message, fields: Event) -> None:
    ParseDict(
        {name: value for name, value in fields.items() if value is not None},
        message,
        ignore_unknown_fields=True,
    )


def _plain(message: Message) -> dict[str, Any]:
    """Return a message's fields: absent optional ones as None, integers as integers (protobuf's JSON has strings)."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, Timestamp):
            continue
        if isinstance(value, Struct):
            if value:
                plain[field.name] = MessageToDict(value)
            continue
        if isinstance(value, Mapping):  # its keys are text, as in any JSON object
            plain[field.name] = {str(key): entry for key, entry in value.items()}
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            plain[field.name] = [_one(entry) for entry in value]
        elif field.has_presence and not message.HasField(field.name):
            plain[field.name] = None
        else:
            plain[field.name] = _one(value)
    return plain


def _one(value: Any) -> Any:
    return _plain(value) if isinstance(value, Message) else value


def _timestamp(seconds: Any) -> Timestamp:
    stamp = Timestamp()
    try:
        stamp.FromDatetime(datetime.fromtimestamp(float(seconds), UTC))
    except (
        TypeError,
        ValueError,
        OverflowError,
        OSError,
    ):  # an event's time is as little to be trusted as the rest
        stamp.FromDatetime(datetime.fromtimestamp(0, UTC))
    return stamp


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
