"""Why a process ended, from the texts that Ray really has."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from lowdimfa.services.trainer import end_of_process
from lowdimfa.services.trainer.end_of_process import kernel_oom_kills, reason_of

ACTOR = (
    "The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: BlockHost\n"
    "\tactor_id: 6b51bb0b6bd2fd2c1bb3b2f001000000\n"
    "\tpid: 4242\n"
    "\tname: block-1-job-1795602542\n"
    "\tnamespace: default\n"
    "\tip: 127.0.0.1\n"
)
WORKER = "The actor is dead because its worker process has died. Worker exit type: "
OOM_HINT = (
    "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, "
    "(2) ray stop --force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another "
    "unexpected error."
)
OLDER_HINT = (
    "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory "
    "usage. (2) ray stop --force is called. (3) The worker is crashed unexpectedly due to SIGSEGV or other "
    "unexpected errors."
)
ENDED = "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
MONITOR = (
    "Worker exit detail: 1 worker(s) were killed due to the node running low on memory. \n"
    "Memory on the node (IP: 10.0.0.1, ID: ab) was 9.50GB used / 10.00GB limit (0.950000)\n"
)


def died(text: str) -> RayActorError:
    return RayActorError(error_msg=ACTOR + text)


def test_a_process_that_the_memory_monitor_killed_had_too_little_memory() -> None:
    for text in (f"{WORKER}NODE_OUT_OF_MEMORY {MONITOR}", f"{WORKER}SYSTEM_ERROR {MONITOR}", MONITOR):
        reason = reason_of(died(text), kernel_oom_kills())
        assert reason.startswith("its machine ran out of memory and Ray killed it; ")
        assert "train.batch_size" in reason and "train.microbatches" in reason


@pytest.mark.parametrize("hint", [OOM_HINT, OLDER_HINT])
def test_that_ray_speaks_of_the_oom_killer_is_no_proof_of_it(hint: str) -> None:
    """Ray says it of every process that was killed, whoever did it."""
    text = f"{WORKER}SYSTEM_ERROR {ENDED}{hint}"
    assert reason_of(died(text), kernel_oom_kills()) == "it was killed, or crashed"


@pytest.mark.parametrize("hint", [OOM_HINT, OLDER_HINT])
def test_what_the_kernel_killed_since_is_probably_this_one(
    monkeypatch: pytest.MonkeyPatch, hint: str
) -> None:
    monkeypatch.setattr(end_of_process, "kernel_oom_kills", lambda: 5)
    error = died(f"{WORKER}SYSTEM_ERROR {ENDED}{hint}")
    assert "the kernel killed processes, probably this one; lower train.batch_size" in reason_of(error, 4)
    assert reason_of(error, 5) == "it was killed, or crashed"


def test_what_ray_kill_ended_is_said_so() -> None:
    error = died("The actor is dead because it was killed by `ray.kill`.")
    assert reason_of(error, kernel_oom_kills()) == "The actor is dead because it was killed by `ray.kill`."


def test_a_lost_node_is_said_so() -> None:
    text = "The actor is dead because its node has died. Node Id: ab\n\tthe actor's node was terminated"
    assert (
        reason_of(died(text), kernel_oom_kills())
        == "The actor is dead because its node has died. Node Id: ab"
    )


@pytest.mark.parametrize(
    "error", [ActorDiedError(), ActorUnavailableError("rpc error", None), RayActorError(error_msg="")]
)
def test_whatever_ray_says_becomes_one_line(error: RayActorError) -> None:
    reason = reason_of(error, kernel_oom_kills())
    assert reason and "\n" not in reason


def test_the_kernel_counts_its_kills() -> None:
    assert kernel_oom_kills() >= 0
