from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.coordinator.jobs import Job, JobState
from lowdimfa.services.coordinator.messages import (
    event_to_message,
    job_fields,
    job_to_message,
    message_to_event,
    state_of,
    state_to_message,
)
from lowdimfa.services.coordinator.store import JobEvent
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb

numbers = st.floats(allow_nan=False, allow_infinity=False)
steps = st.integers(0, 2**53)
small = st.integers(0, 2**31)
words = st.text(max_size=20)

EVENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "state": {
        "state": st.sampled_from([str(state) for state in JobState]),
        "detail": words,
        "attempt": small,
    },
    "progress": {
        "step": steps,
        "steps": steps,
        "epoch": small,
        "loss": st.none() | numbers,
        "accuracy": st.none() | numbers,
        "samples": steps,
        "samples_per_second": numbers,
        "eta_seconds": st.none() | numbers,
        "perplexity": st.none() | numbers,
        "bits_per_byte": st.none() | numbers,
        "tokens_per_second": st.none() | numbers,
    },
    "evaluated": {
        "step": steps,
        "test_loss": st.none() | numbers,
        "test_accuracy": st.none() | numbers,
        "test_perplexity": st.none() | numbers,
        "test_bits_per_byte": st.none() | numbers,
        "test_tokens": st.none() | steps,
    },
    "alignment": {
        "step": steps,
        "blocks": st.lists(
            st.fixed_dictionaries(
                {
                    "block": small,
                    "cosine": st.none() | numbers,
                    "angle_degrees": st.none() | numbers,
                    "update_norm": st.none() | numbers,
                    "gradient_norm": st.none() | numbers,
                }
            ),
            max_size=3,
        ),
        "explained_error_energy": st.none() | numbers,
    },
    "checkpoint": {"step": steps, "path": words, "seconds": numbers, "pause_seconds": numbers},
    "checkpoint_failed": {"step": steps, "message": words},
    "warning": {"message": words},
    "recovering": {
        "policy": st.sampled_from(["restart", "rejoin"]),
        "blocks": st.lists(small, max_size=3),
        "reason": words,
        "step": steps,
        "recovery": small,
    },
    "recovered": {
        "policy": st.sampled_from(["restart", "rejoin"]),
        "blocks": st.lists(small, max_size=3),
        "step": steps,
        "missed": st.dictionaries(small.map(str), steps, max_size=3),
        "seconds": numbers,
        "pids": st.none()
        | st.fixed_dictionaries({"trainer": st.none(), "blocks": st.lists(small, max_size=3)}),
    },
    "failed": {
        "code": words,
        "message": words,
        "exit_code": small,
        "block": st.none() | small,
        "step": st.none() | steps,
        "setting": st.none() | words,
    },
    "started": {
        "run_dir": words,
        "engine": words,
        "blocks": small,
        "parameters": steps,
        "error_dim": small,
        "steps": steps,
        "step": steps,
        "nodes": small,
        "source": words,
        "evaluated_split": words,
        "boundaries": st.lists(words, max_size=3),
        "replicas": st.lists(small, max_size=3),
        "pids": st.fixed_dictionaries({"trainer": small, "blocks": st.lists(small, max_size=3)}),
    },
}


def test_every_kind_of_the_protocol_is_tried_here() -> None:
    kinds = {field.name for field in pb.JobEvent.DESCRIPTOR.oneofs_by_name["event"].fields}
    assert kinds - {"finished"} == set(EVENTS)


@given(st.sampled_from(sorted(EVENTS)), st.data(), st.integers(1, 2**40))
def test_an_event_comes_back_as_it_was(kind: str, data: st.DataObject, sequence: int) -> None:
    fields = data.draw(st.fixed_dictionaries(EVENTS[kind]))
    event = {"event": kind, "time": 1_795_591_090.25, **fields}
    wire = event_to_message(JobEvent(sequence, event)).SerializeToString()
    assert message_to_event(pb.JobEvent.FromString(wire)) == event | {"sequence": sequence}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["time", "step", "steps", "blocks", "loss", "message", "state", "pids", "code", "missed"]
        ),
        json_values,
    ),
    st.sampled_from([*EVENTS, "finished", "", "nonsense", "sequence"]),
)
def test_whatever_a_run_logs_is_sent_as_something_with_its_sequence(
    fields: dict[str, Any], kind: str
) -> None:
    message = event_to_message(JobEvent(7, {**fields, "event": kind}))
    back = message_to_event(pb.JobEvent.FromString(message.SerializeToString()))
    assert back["sequence"] == 7
    assert math.isfinite(back["time"])


def test_states_of_plain_data_and_of_the_protocol_are_the_same() -> None:
    assert {state_of(state_to_message(state)) for state in JobState} == set(JobState)
    assert len(pb.JobState.keys()) == len(JobState) + 1
    assert state_of(0) is None and state_of(99) is None


def test_a_job_keeps_its_fields_and_what_is_absent_is_none() -> None:
    job = Job(
        id="a-1", name="a", owner="ada", state=JobState.failed, detail="it broke", created=12.5, run_dir="/r",
        cpus=1, gpus=0, error={"code": "internal", "message": "m", "exit_code": 1, "block": 0}, started=13.0,
        attempt=2, step=2**40, steps=2**41, loss=0.5, last_sequence=9,
    )  # fmt: skip
    fields = job_fields(pb.Job.FromString(job_to_message(job).SerializeToString()))
    assert (fields["state"], fields["created"], fields["started"], fields["ended"]) == (
        "failed",
        12.5,
        13.0,
        None,
    )
    assert (fields["step"], fields["loss"], fields["test_accuracy"]) == (2**40, 0.5, None)
    assert (fields["error"]["code"], fields["error"]["block"], fields["error"]["step"]) == (
        "internal",
        0,
        None,
    )
    assert job_fields(job_to_message(job, "other"))["detail"] == "other"
