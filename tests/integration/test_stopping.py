"""An early end: the blocks agree on a step whatever happens in which order, and the loop leaves a checkpoint there."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_simulation import Simulation, policy

from lowdimfa.callback import Callback, Run
from lowdimfa.errors import StoppedError
from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Done,
    EndAt,
    ErrorArrived,
    Finished,
    Policy,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.signals import graceful_signals
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.ticks import EarlyEnd
from lowdimfa.tickets import Ticket

ZERO, ONE = Ticket(0, 0), Ticket(1, 0)


def check(blocks: int, rules: Policy, steps: range, seed: int, stop_turn: int) -> int:
    """Stop a simulation after some of its events; return the step that all blocks reached."""
    simulation = Simulation(blocks, rules, steps, seed, stop_turn)
    simulation.run()
    (reached,) = {node.schedule.last_step for node in simulation.nodes}
    for node in simulation.nodes:
        assert node.schedule.applied_steps == reached
        assert node.of(RunForward) == node.forwards
        assert node.of(RunUpdate, ApplyStep) == node.updates
    return reached


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_all_blocks_end_at_one_step_wherever_the_request_comes(blocks: int, staleness: int) -> None:
    reached = set()
    for seed, (m, w, probe_every) in enumerate(itertools.product((1, 2), (1, 3), (0, 1, 2))):
        rules = policy(m=m, w=w, s=staleness, probe_every=probe_every)
        whole = Simulation(blocks, rules, range(4), seed)
        whole.run()
        for turn in range(0, whole.turns, 1 + whole.turns // 12):
            reached.add(check(blocks, rules, range(4), seed, turn))
    assert {1, 2, 3, 4} >= reached > {4}


@given(
    blocks=st.integers(1, 5),
    rules=st.builds(
        policy, m=st.integers(1, 5), w=st.integers(1, 8), s=st.integers(0, 3), probe_every=st.integers(0, 3)
    ),
    first_step=st.integers(0, 7),
    steps=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    turn=st.integers(0, 200),
)
def test_any_interleaving_ends_at_one_step(
    blocks: int, rules: Policy, first_step: int, steps: int, seed: int, turn: int
) -> None:
    reached = check(blocks, rules, range(first_step, first_step + steps), seed, turn)
    assert first_step + min(steps, 1) <= reached <= first_step + steps


def test_the_step_that_a_first_block_is_in_is_run_to_its_end() -> None:
    schedule = Schedule(policy(first=True, m=2, w=9, s=1), 0, 9)
    assert schedule.start() == [RunForward(ZERO, False)]
    assert schedule.handle(EndAt(0)) == []
    assert schedule.last_step == 1
    assert schedule.handle(Finished(RunForward(ZERO, False))) == [
        Send(ZERO),
        RunForward(Ticket(0, 1), False),
    ]
    assert schedule.handle(Finished(RunForward(Ticket(0, 1), False))) == [Send(Ticket(0, 1)), Wait("error")]


def test_a_step_that_ran_ahead_is_not_given_up() -> None:
    schedule = Schedule(policy(first=True, w=9, s=1), 0, 9)
    schedule.start()
    schedule.handle(Finished(RunForward(ZERO, False)))
    assert schedule.handle(Finished(RunForward(ONE, False))) == [Send(ONE), Wait("staleness")]
    assert schedule.handle(EndAt(0)) == [Wait("error")]
    assert schedule.last_step == 2


def test_a_block_that_waits_for_a_step_that_will_not_come_is_done() -> None:
    schedule = Schedule(policy(), 0, 9)
    schedule.start()
    for event in (
        ActivationArrived(ZERO),
        Finished(RunForward(ZERO, False)),
        ErrorArrived(ZERO, "train"),
        Finished(RunUpdate(ZERO, "train")),
    ):
        schedule.handle(event)
    assert schedule.handle(Finished(ApplyStep(0))) == [Wait("activation")]
    assert schedule.handle(EndAt(1)) == [Done()]
    assert schedule.handle(EndAt(1)) == []


def test_the_end_is_never_put_off() -> None:
    schedule = Schedule(policy(), 0, 3)
    schedule.start()
    schedule.handle(EndAt(2))
    assert schedule.handle(EndAt(7)) == []
    assert schedule.last_step == 2


class Group:
    """Workers of which the first takes its time to answer."""

    liveness, workers = 1.0, ("first", "second")

    def __init__(self, answers: list[int | None]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answers = answers

    def ask_one(self, worker: str, method: Callable[..., Any], *arguments: Any) -> int | None:
        self.calls.append((worker, method, *arguments))
        return self._answers.pop(0) if method is BlockWorker.ends_at else None

    def ask(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        self.calls.append(("all", method, *arguments))
        return []


def test_the_others_are_told_once_what_the_first_block_answers() -> None:
    group, stop = Group([None, None, 7]), StopRequest()
    end = EarlyEnd(group, stop)  # type: ignore[arg-type]
    end.look()
    assert group.calls == []
    stop.make()
    for _ in range(6):
        end.look()
    assert group.calls == [
        ("first", BlockWorker.end_at, 0),
        *[("first", BlockWorker.ends_at)] * 3,
        ("all", BlockWorker.end_at, 7),
    ]


SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "feedback": {"q_rule": "hebbian"},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
        "scheduler": {"factory": "torch.optim.lr_scheduler.OneCycleLR", "args": {"max_lr": 0.003}},
        "log_every": 1,
    },
    "run": {"evaluate_every_epochs": 0, "timeline": False},
}


def fit(
    run_dir: Path, act: Callable[[DecoupledTrainer, dict[str, Any]], None] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Run in this process; ``act`` gets the trainer and every event."""
    events: list[dict[str, Any]] = []

    def see(event: dict[str, Any]) -> None:
        events.append(event)
        if act is not None:
            act(trainer, event)

    trainer = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=run_dir, on_event=see, **options)
    trainer.fit()
    return events


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def test_stopped_in_a_segment_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    def stop(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 5:
            trainer.stop()

    fit(tmp_path / "whole")
    with pytest.raises(StoppedError, match="go on from step 5 with --resume") as caught:
        fit(tmp_path / "parts", stop)
    assert caught.value.step == 5
    log = [json.loads(line) for line in (tmp_path / "parts" / "events.jsonl").open()]
    assert [event["event"] for event in log[-2:]] == ["checkpoint", "failed"]
    assert (log[-2]["step"], log[-1]["code"], log[-1]["step"]) == (5, "stopped", 5)
    resumed = fit(tmp_path / "parts", resume=True)
    assert [event["step"] for event in resumed if event["event"] == "progress"] == list(range(6, 13))
    found, expected = exported(tmp_path / "parts"), exported(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_stopped_before_the_first_step_leaves_a_checkpoint_of_it(tmp_path: Path) -> None:
    def stop(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            trainer.stop()

    with pytest.raises(StoppedError, match="go on from step 0"):
        fit(tmp_path / "run", stop)
    assert fit(tmp_path / "run", resume=True)[-1]["steps"] == 12


def test_a_fork_within_a_run_ends_with_the_signal_that_is_sent_to_it() -> None:
    with graceful_signals(lambda: None, 60.0) as stopping:
        ready, begun = os.pipe()
        child = os.fork()
        if not child:
            os.write(begun, b"1")  # a fork forgets the signals that come before it is complete
            for _ in range(3000):  # more than one: the signal may come before it would be waited for
                time.sleep(0.01)
            os._exit(1)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
    os.close(ready)
    os.close(begun)
    assert not stopping.asked


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """As in a program that leaves signals to Python: a Ray of an earlier test may have left one of its own here."""
    left = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, left)


@pytest.mark.usefixtures("no_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_from_python_as_the_call_does(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 5:
            signal.raise_signal(number)

    with pytest.raises(StoppedError, match="go on from step 5 with --resume"):
        fit(tmp_path / "run", interrupt)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert fit(tmp_path / "run", resume=True)[-1]["steps"] == 12


def test_a_second_ctrl_c_interrupts_a_run_from_python_at_once(tmp_path: Path) -> None:
    def interrupt(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_signals_itself_goes_on_to_do_so(tmp_path: Path) -> None:
    seen: list[int] = []
    default = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))

    def interrupt(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    try:
        assert fit(tmp_path / "run", interrupt)[-1]["event"] == "finished"
    finally:
        signal.signal(signal.SIGINT, default)
    assert seen == [signal.SIGINT]


def test_in_another_thread_than_the_main_one_a_run_takes_no_signals(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit, tmp_path / "run").result()[-1]["event"] == "finished"


def test_stopped_before_it_began_leaves_no_run(tmp_path: Path) -> None:
    trainer = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run")
    trainer.stop()
    with pytest.raises(StoppedError, match="before the first checkpoint"):
        trainer.fit()
    assert fit(tmp_path / "run")[-1]["steps"] == 12


def test_a_trainer_that_was_stopped_can_run_again(tmp_path: Path) -> None:
    """Whoever stopped it: its user, or a callback in this process."""

    class Once(Callback):
        def progress(self, event: dict[str, Any], run: Run) -> None:
            if event["step"] == 5:
                run.stop("enough")

    def ask(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] in (3, 8):
            trainer.stop()

    options: dict[str, Any] = {"run_dir": tmp_path / "run", "callbacks": [Once()], "on_event": ask}
    trainer = DecoupledTrainer(SPECIFICATION, engine="local", **options)
    with pytest.raises(StoppedError, match="step 3"):
        trainer.fit()
    trainer = DecoupledTrainer(SPECIFICATION, engine="local", resume=True, **options)
    assert trainer.fit().metrics["steps"] == 5
    with pytest.raises(StoppedError, match="step 8"):
        trainer.fit()
    assert trainer.fit().metrics["steps"] == 12


def test_a_stop_in_the_last_step_is_the_end_of_the_run(tmp_path: Path) -> None:
    def stop(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 12:
            trainer.stop()

    assert fit(tmp_path / "run", stop)[-1]["event"] == "finished"


def test_the_first_signal_asks_and_the_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), graceful_signals(stop.make, 60.0):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.made
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == (
        "stopping: finishing the step and writing a checkpoint; again to stop at once\n"
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_stop_that_takes_too_long_is_made_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), graceful_signals(stop.make, 0.05):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert "took longer than 0.05 s" in capfd.readouterr().err
