"""Real Ray actors: the same bits as in process, and failures that are named in time."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.errors import NotFiniteError, PeerError, ResourceError, StoppedError
from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.recovery.deadlines import START_LIVENESS
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.results import Result

LIVENESS = 8.0
"""Long enough for a block that waits for a processor, and short enough to be waited for."""

pytestmark = pytest.mark.usefixtures("cluster")


class Watch:
    """Keeps a run's events, and acts on one of them."""

    def __init__(self, event: str = "", action: Any = None) -> None:
        self.events: list[dict[str, Any]] = []
        self._event = event
        self._action = action

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == self._event and self._action is not None:
            action, self._action = self._action, None
            action(event)

    def first(self, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["event"] == name)


def fit(plain: dict[str, Any], run_dir: Path, engine: str = "ray", watch: Watch | None = None) -> Result:
    own = Path(__file__).parent
    return DecoupledTrainer(plain, engine=engine, run_dir=run_dir, on_event=watch, user_code=own).fit()  # type: ignore[arg-type]


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def assert_gone(pids: dict[str, Any], seconds: float = 60.0) -> None:
    """Every process of a run has ended."""
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in (pids["trainer"], *pids["blocks"]) if psutil.pid_exists(pid)], seconds
    )
    assert not alive


@pytest.mark.parametrize(
    ("model", "blocks", "q_rule"),
    [
        ("cnn", 4, "hebbian"),
        ("transformer", 2, "probed"),
    ],
)
def test_same_bits_as_in_process(model: str, blocks: int, q_rule: str, tmp_path: Path) -> None:
    """What draws random numbers needs processes of its own; test_workers.py has the rest in threads."""
    watch = Watch()
    # The items of one draw random numbers, for inputs and targets at once.
    data = {"factory": "drawing:turned" if model == "transformer" else "lowdimfa.data:digits"}
    plain = specification(model, blocks, q_rule, data=data)
    result = fit(plain, tmp_path / "ray", watch=watch)
    local = fit(plain, tmp_path / "local", engine="local")
    assert result.metrics["test_loss"] == local.metrics["test_loss"]
    found, expected = exported(tmp_path / "ray"), exported(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    pids = watch.first("started")["pids"]
    assert len({pids["trainer"], *pids["blocks"], os.getpid()}) == blocks + 2
    assert result.metrics["broadcast_payload_bytes_per_sample"] == 4 * 10 * (1 + (q_rule == "probed") / 4)
    assert_gone(pids)


def test_own_code_that_draws_or_works_in_place_gives_the_same_bits(tmp_path: Path) -> None:
    plain = specification(
        blocks=3,
        train={
            "optimizer": {"factory": "odd_layers:NoisySGD", "args": {"lr": 0.1}},
            "loss": "odd_layers:loss",
            "microbatches": 4,
        },
        run={"evaluate_every_epochs": 1, "checkpoint_every": 4},
    )
    plain["model"] = {"factory": "odd_layers:model", "blocks": 3}
    ours, theirs = (fit(plain, tmp_path / engine, engine) for engine in ("ray", "local"))
    found, expected = exported(tmp_path / "ray"), exported(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"]


def test_every_metric_of_a_running_job_can_be_scraped(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pages: dict[str, str] = {}

    def scrape(_event: dict[str, Any]) -> None:
        for entry in json.loads((tmp_path / "targets" / "run.json").read_text()):
            (address,) = entry["targets"]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
                pages[entry["labels"].get("block", "trainer")] = answer.read().decode()
        trainer.stop()

    plain = specification(
        "mlp", 3, run={"evaluate_every_epochs": 1, "checkpoint_every": 4}, train={"steps": 100_000}
    )
    trainer = DecoupledTrainer(plain, run_dir=run_dir, on_event=Watch("checkpoint", scrape))
    with pytest.raises(StoppedError):
        trainer.fit()
    assert set(pages) == {"0", "1", "2", "trainer"}
    seen = {
        sample.name
        for page in pages.values()
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    of_text = ("perplexity", "bpb", "tokens_per_second")  # of which tests/integration/test_language.py is
    expected = {
        metric.name
        for metric in METRICS
        if metric.process != "coordinator"
        and not any(word in metric.name for word in ("failures", "test_", "alignment", *of_text))
    }
    assert expected <= seen
    steps = {
        block: sample.value
        for block, page in pages.items()
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "lowdimfa_block_applied_steps"
    }
    assert set(steps) == {"0", "1", "2"} and all(value >= 4 for value in steps.values())
    assert not (tmp_path / "targets" / "run.json").exists()


def test_blocks_on_one_machine_are_scraped_where_other_machines_reach_it(tmp_path: Path) -> None:
    found: list[str] = []

    def read(_event: dict[str, Any]) -> None:
        for entry in json.loads((tmp_path / "targets" / "run.json").read_text()):
            found.extend(address.rpartition(":")[0] for address in entry["targets"])

    plain = specification("mlp", 2, run={"metrics": "node"}, train={"steps": 2})
    watch = Watch("progress", read)
    fit(plain, tmp_path / "run", watch=watch)
    assert watch.first("started")["nodes"] == 1
    assert found == [ray.util.get_node_ip_address()] * 3


def test_replicas_are_stopped_resumed_and_restarted_to_the_same_bits(tmp_path: Path) -> None:
    """Block 0 has two replicas; one of them is killed, after somebody stopped and resumed the run."""
    run_dir = tmp_path / "ray"
    plain = specification(
        "mlp",
        2,
        train={
            "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.05, "momentum": 0.9}},
            "scheduler": None,
            "steps": 100_000,  # it can't end before it is stopped
            "microbatches": 4,
        },
        run={"on_failure": "restart", "checkpoint_every": 20, "liveness_seconds": 20.0},
        placement={"replicas": 2},
    )
    watch = Watch("checkpoint", lambda event: trainer.stop())
    trainer = DecoupledTrainer(plain, run_dir=run_dir, on_event=watch)
    with pytest.raises(StoppedError):
        trainer.fit()
    pids = watch.first("started")["pids"]
    assert len({pids["trainer"], *pids["blocks"]}) == 1 + 3
    assert_gone(pids)

    stopped = CheckpointStore(run_dir).load(None).step
    assert 20 <= stopped < 100_000
    plain["train"]["steps"] = stopped + 40
    crash = {"kind": "crash", "block": 0, "replica": 1, "step": stopped + 30}
    resumed = Watch()
    trainer = DecoupledTrainer(
        plain | {"drill": {"faults": [crash]}}, run_dir=run_dir, on_event=resumed, resume=True
    )
    trainer.fit()
    assert "block 0, replica 1 lost its process" in resumed.first("recovering")["reason"]
    assert resumed.first("recovered")["blocks"] == [0]
    assert stopped <= resumed.first("recovered")["step"] <= stopped + 30
    assert {path.name for path in (run_dir / "timeline").iterdir()} == {
        "block-0.jsonl",
        "block-0-replica-1.jsonl",
        "block-1.jsonl",
    }
    assert json.loads((run_dir / "plan.json").read_text())["replicas"] == [2, 1]

    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, stopped + 40)
        whole = fleet.model_state()
    fit(plain | {"placement": {"replicas": 1}}, tmp_path / "local", engine="local")
    found, single = exported(run_dir), exported(tmp_path / "local")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    torch.testing.assert_close(whole, single, rtol=1e-2, atol=1e-4)


def test_a_hanging_block_is_named_within_the_liveness(tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        nonlocal stopped_at
        stopped_at = time.monotonic()
        os.kill(watch.first("started")["pids"]["blocks"][1], signal.SIGSTOP)

    stopped_at = 0.0
    watch = Watch("progress", stop)
    plain = specification(
        "mlp", 3, run={"checkpoint_every": 0, "liveness_seconds": LIVENESS}, train={"steps": 100_000}
    )
    with pytest.raises(PeerError, match="block 1"):
        fit(plain, tmp_path / "run", watch=watch)
    assert time.monotonic() - stopped_at < 4 * LIVENESS
    assert_gone(watch.first("started")["pids"])


@pytest.mark.slow
def test_a_block_that_hangs_while_it_is_saved_is_named_after_as_long_as_a_start_may_take(
    tmp_path: Path,
) -> None:
    def lay(event: dict[str, Any]) -> None:
        nonlocal laid_at
        laid_at = time.monotonic()
        trap.touch()

    laid_at, trap = 0.0, tmp_path / "trap"
    watch = Watch("progress", lay)
    plain = specification(
        run={"checkpoint_every": 20, "liveness_seconds": LIVENESS}, train={"steps": 100_000}
    )
    plain["model"] = {"factory": "odd_layers:stopping", "args": {"trap": str(trap)}, "blocks": ["3", "4"]}
    with pytest.raises(PeerError, match="no answer to 'save' from block 1"):
        fit(plain, tmp_path / "run", watch=watch)
    assert time.monotonic() - laid_at < (START_LIVENESS + 3) * LIVENESS
    assert_gone(watch.first("started")["pids"])


def test_a_loss_that_is_not_finite_names_block_and_step(tmp_path: Path) -> None:
    train = {"optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 1e30}}, "scheduler": None}
    with pytest.raises(NotFiniteError) as caught:
        fit(specification("mlp", 3, train=train), tmp_path / "run")
    assert caught.value.block in (0, 1, 2)
    assert caught.value.step in (1, 2)


def test_a_cluster_without_room_is_refused_in_time(tmp_path: Path) -> None:
    plain = specification("mlp", 2, placement={"cpus_per_block": 1000}, run={"liveness_seconds": 3.0})
    with pytest.raises(ResourceError, match="no room for 2 blocks"):
        fit(plain, tmp_path / "run")


def test_no_placement_group_is_left_behind() -> None:
    groups = ray.util.placement_group_table()
    assert {group["state"] for group in groups.values()} <= {"REMOVED"}
