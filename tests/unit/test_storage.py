"""Runs that are kept at an address: what counts as a checkpoint there, and what comes to lie where."""

from __future__ import annotations

import functools
import itertools
import json
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specifications import SMALL

from lowdimfa.errors import DiskFullError, InputError, ResourceError, StoppedError, StorageError
from lowdimfa.services.cli.options import placed
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run import mirror
from lowdimfa.services.run.checkpoint import BlockState, CheckpointStore, export_state, write_block
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.manifest import MANIFEST_FILE
from lowdimfa.services.run.mirror import Mirror, fetch, work_dir
from lowdimfa.services.run.naming import ENDPOINTS, require_usable
from lowdimfa.services.run.objects import Objects, ObjectsError
from lowdimfa.services.run.storage import Folder, located
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.services.trainer.execute import execute
from lowdimfa.services.trainer.run_dir import opened
from lowdimfa.services.trainer.stopping import stopped

SPECIFICATION: dict[str, Any] = SMALL | {
    "train": SMALL["train"] | {"steps": 8},
    "run": {"evaluate_every_epochs": 0, "checkpoint_every": 2, "keep": 3, "tensorboard": False},
}


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{secrets.token_hex(4)}/run" if request.param == "memory" else str(tmp_path / "run")


@pytest.fixture
def address() -> str:
    return f"memory://{secrets.token_hex(4)}/run"


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_machine(tmp_path / "machine", monkeypatch)


def another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be one that has nothing of a run yet."""
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def state(value: float, block: int = 0) -> BlockState:
    return BlockState(block, [f"layer{block}"], {f"model/{block}": torch.full((3,), value)}, {})


def save(store: CheckpointStore, step: int, value: float, blocks: int = 2) -> None:
    attempt = store.begin(step)
    store.commit(step, [write_block(attempt, state(value, block)) for block in range(blocks)], {})


def value_of(store: CheckpointStore, step: int | None = None) -> float:
    (value,) = {float(each) for tensor in export_state(store.load(step)).values() for each in tensor}
    return value


def test_only_a_manifest_makes_a_checkpoint(place: str) -> None:
    store = CheckpointStore(place, keep=2)
    save(store, 1, 1.0)
    torn = store.begin(2)
    write_block(torn, state(2.0))
    assert store.list() == [1] and store.newest_good().manifest is not None
    with pytest.raises(InputError, match=r"no checkpoint of step 2; .* \(there: 1\)"):
        store.load(2)
    save(store, 3, 3.0)
    assert store.list() == [1, 3] and value_of(store) == 3.0
    found = store._storage.tree("checkpoints")
    assert found.keys() == {"step-00000001", "step-00000003"} and all(
        len(files) == 3 for files in found.values()
    )


def test_one_of_the_same_step_takes_the_place_of_another_at_once(place: str) -> None:
    store = CheckpointStore(place)
    save(store, 5, 1.0, blocks=3)
    attempt = store.begin(5)
    entries = [write_block(attempt, state(2.0, block)) for block in range(2)]
    assert value_of(store) == 1.0 and len(store.load(5).entries) == 3
    store.abandon()
    assert value_of(store) == 1.0
    with pytest.raises(InputError, match="no complete"):
        store.commit(5, entries, {})
    save(store, 5, 3.0)
    assert value_of(store) == 3.0 and len(store._storage.tree("checkpoints")["step-00000005"]) == 3


def test_a_course_that_was_given_up_and_old_ones_are_deleted(place: str) -> None:
    store = CheckpointStore(place, keep=2)
    for step in (1, 2, 9):
        save(store, step, float(step))
    save(store, 4, 4.0)
    assert store.list() == [2, 4] and value_of(store) == 4.0


def test_a_trainer_whose_run_was_taken_over_touches_no_checkpoint(address: str) -> None:
    first, second = CheckpointStore(address), CheckpointStore(address)
    first.claim()
    attempt = first.begin(3)
    entries = [write_block(attempt, state(1.0))]
    second.claim()
    save(second, 9, 9.0)
    for late in (lambda: first.commit(3, entries, {}), lambda: save(first, 4, 4.0)):
        with pytest.raises(InputError, match="another trainer has taken over"):
            late()
    first.abandon()
    assert second.list() == [9] and value_of(second) == 9.0


def test_a_block_that_was_given_up_and_writes_on_spoils_no_later_attempt(place: str) -> None:
    store, (lost, block) = CheckpointStore(place), (ExitStack(), ExitStack())
    given_up = store.begin(5)
    late = lost.enter_context(store._storage.writing(f"{given_up.folder}/block-0{given_up.mark}.safetensors"))
    late.write(b"half")
    store.abandon()
    attempt = store.begin(5)
    name = f"{attempt.folder}/block-0{attempt.mark}.safetensors"
    block.enter_context(store._storage.writing(name)).write(b"another block's first half")
    late.write(b"and half")
    with suppress(FileNotFoundError):  # what it wrote was swept
        lost.close()
    block.close()
    assert store._storage.read(name) == b"another block's first half"
    save(store, 5, 5.0)
    assert value_of(store) == 5.0


class Crash(BaseException):
    """The machine stops."""


CHANGES = ("writing", "delete", "discard", "tree", "read")


@settings(max_examples=20)
@given(
    kind=st.sampled_from([Folder, Objects]),
    earlier=st.lists(st.integers(1, 4), max_size=4),
    step=st.integers(1, 4),
    keep=st.integers(1, 2),
    blocks=st.integers(1, 2),
    call=st.integers(0, 12),
    failure=st.sampled_from([Crash, ObjectsError]),
)
def test_whatever_stops_a_checkpoint_leaves_the_last_good_one(
    kind: type[Folder | Objects],
    earlier: list[int],
    step: int,
    keep: int,
    blocks: int,
    call: int,
    failure: type[BaseException],
) -> None:
    root = tempfile.mkdtemp() if kind is Folder else f"memory://{secrets.token_hex(4)}/run"
    store, value, saved = CheckpointStore(root, keep), 0.0, None
    for value, saved in enumerate(earlier, 1):
        save(store, saved, float(value))
    before = {number: value_of(store, number) for number in store.list()}
    counter, stopped = itertools.count(), False

    def counted(change: Any) -> Any:
        def stopping(*args: Any, **named: Any) -> Any:
            number = next(counter)
            if number == call or (number > call and failure is Crash):
                raise failure()
            return change(*args, **named)

        return stopping

    with pytest.MonkeyPatch.context() as patched:
        for name in CHANGES:
            patched.setattr(kind, name, counted(getattr(kind, name)))
        try:
            save(store, step, 9.0, blocks)
        except (Crash, ResourceError):
            stopped = True
    there = {number: value_of(store, number) for number in store.list()}  # each whole, and of one attempt
    assert all(there[number] == before.get(number, 9.0) for number in there.keys() - {step})
    assert there.get(step) in ({before.get(step), 9.0} if stopped else {9.0})
    if stopped and saved is not None and (failure is not Crash or step not in there):
        assert saved in there or saved > step
    assert bool(there) or not before
    again = CheckpointStore(root, keep)
    save(again, step, 10.0)
    assert again.list()[-1] == step and value_of(again) == 10.0 and len(again.list()) <= keep
    assert all(
        len(files) == 3 or name != f"step-{step:08d}"
        for name, files in again._storage.tree("checkpoints").items()
    )


@pytest.mark.parametrize(
    "meta", [{"by": "\ud800"}, {"by": functools.reduce(lambda x, _: [x], range(300), [])}]
)
def test_a_checkpoint_that_could_not_be_read_again_takes_no_other_ones_place(
    place: str, meta: dict[str, Any]
) -> None:
    store = CheckpointStore(place)
    save(store, 1, 1.0)
    attempt = store.begin(2)
    with pytest.raises(InputError, match=r"step 2: found state that can't be read back"):
        store.commit(2, [write_block(attempt, state(2.0))], meta)
    assert store.list() == [1] and value_of(store) == 1.0


def test_what_people_put_beside_checkpoints_is_in_nobodys_way(tmp_path: Path) -> None:
    store, root = CheckpointStore(tmp_path / "run", keep=2), tmp_path / "run" / "checkpoints"
    save(store, 1, 1.0)
    save(store, 2, 2.0)
    (root / "step-00000001").rename(tmp_path / "elsewhere")  # to a larger disk
    (root / "step-00000001").symlink_to(tmp_path / "elsewhere")
    (root / "step-00000002" / "notes").mkdir()
    (root / "step-00000002" / "note.txt").touch()
    (root / "step-00000007" / "below").mkdir(parents=True)
    (root / "step-000000001").mkdir()
    save(store, 3, 3.0)
    assert store.list() == [2, 3] and value_of(store, 2) == 2.0
    assert {path.name for path in root.iterdir()} == {"step-000000001", "step-00000002", "step-00000003"}
    assert {"notes", "note.txt"} < {path.name for path in (root / "step-00000002").iterdir()}
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3
    save(store, 4, 4.0)
    save(store, 5, 5.0)
    assert store.list() == [4, 5]


def test_files_that_go_while_somebody_lists_them_hide_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 1.0)
    write_block(store.begin(2), state(2.0))
    lstat = Path.lstat

    def gone(path: Path) -> Any:
        if path.parent.name == "step-00000002":
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert CheckpointStore(tmp_path).list() == [1]


def test_names_in_a_store_lead_to_no_other_folder(address: str, tmp_path: Path, monkeypatch: Any) -> None:
    names = {f"{tmp_path}/evil": 1, "../evil": 1, "logs/../../evil": 1, "events.jsonl": 1}
    monkeypatch.setattr(Objects, "files", lambda self, under="": names)
    monkeypatch.setattr(Objects, "read", lambda self, name: b"x")
    folder = fetch(address)
    assert [path.name for path in folder.rglob("*")] == ["events.jsonl"] and not (tmp_path / "evil").exists()


def test_what_is_wrong_with_an_object_is_found_before_it_is_used(address: str) -> None:
    store, kept = CheckpointStore(address, keep=5), Objects(address)
    for step in (1, 2, 3, 4):
        save(store, step, float(step))
    files = {step: sorted(kept.files(f"checkpoints/step-{step:08d}")) for step in (2, 3, 4)}
    kept.delete(files[4][0])
    cut = kept.read(files[3][1])[:-1]
    flipped = bytearray(kept.read(files[2][0]))
    flipped[-1] ^= 1
    for name, content in ((files[3][1], cut), (files[2][0], bytes(flipped))):
        with kept.writing(name) as file:
            file.write(content)
    found = store.newest_good()
    assert [*found.damaged] == [4, 3] and found.manifest is not None
    assert found.damaged[4].file == f"{address}/{files[4][0]}" and found.damaged[4].found == "no such object"
    with pytest.raises(InputError, match=r"memory://.*: found SHA-256 .*--resume-step"):
        value_of(store, 2)
    assert value_of(store, 1) == 1.0


def test_shapes_are_known_without_the_tensors(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(address)
    save(store, 1, 1.0)
    manifest = store.load(1)
    with monkeypatch.context() as patched:
        patched.setattr(Objects, "fetch", None)
        assert manifest.shapes() == {"0": (3,), "1": (3,)}
        with pytest.raises(InputError, match="another model"):
            manifest.require_same_model({"0": (3,), "1": (4,)})
    assert manifest.shapes() == {"0": (3,), "1": (3,)} and float(export_state(manifest)["1"][2]) == 1.0
    kept = Objects(address)
    (name,) = [name for name in kept.files("checkpoints") if "block-1" in name]
    with kept.writing(name) as file:
        file.write(b"\xff" * len(kept.read(name)))
    with pytest.raises(InputError, match=f"{address}.*block-1"):
        store.load(1).shapes()


def test_a_store_out_of_reach_is_not_taken_for_an_empty_or_a_damaged_one(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(address)
    save(store, 1, 1.0)
    (work_dir(address) / "events.jsonl").touch()
    Mirror(address).update()
    file_system = store._storage._fs

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("503 from example.org\nDebug: and much more")

    for name in ("find", "cat_file"):
        with monkeypatch.context() as patched:
            patched.setattr(type(file_system), name, refuse)
            for ask in (store.newest_good, store.latest, lambda: fetch(address)):
                with pytest.raises(StorageError, match=r"503 from example\.org$") as caught:
                    ask()
                assert caught.value.exit_code == 5 and caught.value.setting == "run.storage"


@given(st.binary(max_size=40), st.binary(max_size=20), st.binary(max_size=20))
def test_a_local_file_that_goes_on_from_its_copy_is_kept(common: bytes, here: bytes, there: bytes) -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "log").write_bytes(common + here)
    mirror._put(folder / "log", common + there)
    expected = common + here if (common + here).startswith(common + there) else common + there
    assert (folder / "log").read_bytes() == expected


def test_who_stops_a_run_is_told_so_though_the_store_is_out_of_reach(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ObjectsError(121, "503", address)

    monkeypatch.setattr(Objects, "files", refuse)
    told = stopped(address)
    assert told.exit_code == StoppedError.exit_code and f"--resume --run-dir {address}" in told.message
    assert "503" in told.message and told.step is None


def test_files_reach_another_machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(CheckpointStore(address), 1, 1.0)
    files = {"events.jsonl": "a\n", "logs/block-0.log": "b", "run.lock": "", ".x.partial": ""}
    for name, text in files.items():
        (work_dir(address) / name).parent.mkdir(exist_ok=True)
        (work_dir(address) / name).write_text(text)
    copies = Mirror(address)
    assert copies.update() == ""
    (work_dir(address) / "events.jsonl").write_text("a\nc\n")
    assert copies.update() == ""
    here = work_dir(address)
    another_machine(tmp_path / "another", monkeypatch)
    there = fetch(address)
    assert there != here and there.name == here.name
    assert {path.name: path.read_text() for path in there.rglob("*") if path.is_file()} == {
        "events.jsonl": "a\nc\n",
        "block-0.log": "b",
    }


def test_a_trainer_that_lost_its_run_to_another_replaces_none_of_its_files(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = []
    for machine in ("one", "two"):
        another_machine(tmp_path / machine, monkeypatch)
        store, copies = CheckpointStore(address), Mirror(address)
        store.claim()
        copies.guard(store.require_own)
        (work_dir(address) / "events.jsonl").write_text(machine)
        (work_dir(address) / mirror.TARGETS).write_text(machine)
        assert copies.update() == ""
        mirrors.append((copies, work_dir(address)))
    first, folder = mirrors[0]
    (folder / "events.jsonl").write_text("one goes on")
    (folder / mirror.TARGETS).unlink()
    assert "another trainer" in first.update()
    first.close()
    there = Objects(address)
    assert {there.read(name) for name in ("events.jsonl", mirror.TARGETS)} == {b"two"}


def test_a_folder_that_vanishes_while_files_are_copied_is_passed_over(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scandir = work_dir(address), os.scandir
    (folder / "gone").mkdir()
    (folder / "later.txt").touch()

    def vanish(path: Any) -> Any:
        if str(path).endswith("gone"):
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert Mirror(address).update() == ""
    assert Objects(address).files() == {"later.txt": 0}


def test_a_run_below_another_one_is_not_touched_by_it(address: str) -> None:
    inner = f"{address}/inner"
    for place in (address, inner):
        (work_dir(place) / "spec.yaml").write_text(place)
        assert Mirror(place).update() == ""
    save(CheckpointStore(inner), 1, 1.0)
    assert [path.name for path in fetch(address).rglob("*")] == ["spec.yaml"]
    save(CheckpointStore(inner), 2, 2.0)
    Mirror(address).update()
    assert CheckpointStore(inner).list() == [2]


def test_a_folder_of_another_user_is_not_used(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir(address)
    (base,) = (tmp_path / "machine").iterdir()
    assert base.stat().st_mode & 0o777 == 0o700
    base.rename(tmp_path / "elsewhere")
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="somebody else"):
        work_dir(address)
    base.unlink()
    base.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="somebody else"):
        work_dir(address)
    base.unlink()
    base.touch()
    with pytest.raises(InputError, match=r"can't be made \(File exists\).*TMPDIR"):
        work_dir(address)
    base.unlink()
    with pytest.raises(InputError, match="File name too long"):
        work_dir(f"{address}/{'x' * 300}")


def bits(place: object) -> dict[str, torch.Tensor]:
    return CheckpointStore(str(place)).load(None).tensors(lambda name: True)


def test_a_run_at_an_address_is_resumed_elsewhere_to_the_bits_of_one_in_a_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=f"file://{tmp_path}/whole").fit()
    assert whole.path == tmp_path / "whole"

    def stop(event: Event) -> None:
        if event["event"] == "checkpoint" and event["step"] == 4:
            trainer.stop()

    trainer = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address, on_event=stop)
    with pytest.raises(Exception, match=f"--resume --run-dir {address}"):
        trainer.fit()
    with pytest.raises(InputError, match="already there"):
        DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address).fit()
    another_machine(tmp_path / "another", monkeypatch)
    result = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address, resume=True).fit()
    assert (result.path, result.checkpoint) == (address, f"{address}/checkpoints/step-00000008")
    expected, found = bits(whole.path), bits(address)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    another_machine(tmp_path / "third", monkeypatch)
    assert evaluate_run(address)["test_loss"] == result.metrics["test_loss"] == whole.metrics["test_loss"]
    lines = Objects(address).read("events.jsonl").splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds.count("started") == 2 and kinds.count("failed") == 1 and kinds[-1] == "finished"
    assert json.loads(Objects(address).read("result.json"))["steps"] == 8


def test_a_trainer_that_is_replaced_before_a_checkpoint_loses_no_event(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address).request
    with opened(request.journal()) as journal:
        journal.emit("started", step=0)
        journal.emit("recovering", lost="trainer")
    (work_dir(address) / "spec.yaml").write_text("of the first attempt")
    assert Mirror(address).update() == ""
    another_machine(tmp_path / "another", monkeypatch)
    again = request.again(1.0)
    assert not again.resume and "spec.yaml" not in Objects(address).files()
    execute(again, again.journal())
    kinds = [event["event"] for event in request.journal().read()]
    assert kinds[:4] == ["started", "recovering", "started", "recovered"] and kinds[-1] == "finished"
    assert (work_dir(address) / "events.jsonl").read_bytes() == Objects(address).read("events.jsonl")

    for name in list(Objects(address).files()):  # somebody deletes the run, and begins anew in its place
        Objects(address).delete(name)
    DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address).fit()
    assert [event["event"] for event in request.journal().read()].count("started") == 1


def test_a_failed_upload_costs_its_checkpoint_alone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Event] = []
    write, refusing = Objects.writing, [False]

    def writing(self: Objects, name: str, size: int = 0) -> Any:
        if refusing[0] and "checkpoints" in name:
            raise ObjectsError(121, "503 from example.org", str(self.place(name)))
        return write(self, name)

    monkeypatch.setattr(Objects, "writing", writing)

    def note(event: Event) -> None:
        seen.append(event)
        if event["event"] == "checkpoint" and event["step"] == 2:
            refusing[0] = True
        if event["event"] == "checkpoint_failed":
            assert CheckpointStore(address).list() == [2]
            refusing[0] = event["step"] < 6

    DecoupledTrainer(SPECIFICATION, engine="local", run_dir=address, on_event=note).fit()
    steps = {
        kind: [event["step"] for event in seen if event["event"] == kind]
        for kind in ("checkpoint", "checkpoint_failed")
    }
    assert steps == {"checkpoint": [2, 8], "checkpoint_failed": [4, 6]}
    (first, counted) = [
        event["message"]
        for event in seen
        if "checkpoint" in event.get("message", "") and event["event"] == "warning"
    ]
    assert first.endswith("503 from example.org; the run goes on and tries again") and "2 were not" in counted

    refusing[0] = True
    longer = SPECIFICATION | {"train": SPECIFICATION["train"] | {"steps": 9}}
    with pytest.raises(
        StorageError, match="once it can be reached, go on with: lowdimfa train SPEC --resume"
    ):
        DecoupledTrainer(longer, engine="local", run_dir=address, resume=True).fit()


def test_training_asks_no_store_for_anything(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    training = [False]

    def noted(function: Any) -> Any:
        def noting(*args: Any, **named: Any) -> Any:
            if training[0]:
                asked.append(threading.current_thread() is threading.main_thread())
            return function(*args, **named)

        return noting

    def note(event: Event) -> None:
        if event["event"] == "progress":
            training[0] = event["step"] < 8

    for name in ("files", "read", "fetch", "writing", "delete"):
        monkeypatch.setattr(Objects, name, noted(getattr(Objects, name)))
    one_by_one = SPECIFICATION | {"train": SPECIFICATION["train"] | {"log_every": 1}}
    DecoupledTrainer(one_by_one, engine="local", run_dir=address, on_event=note).fit()
    assert asked and not any(asked)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:verysecret@bucket/runs",
        "s3://AKIA:begun/verysecret/ended@bucket/runs",
        "s3://verysecret@bucket/runs",
        "gs://verysecret@bucket",
        "https://user:verysecret@host/x",
        "abfs://container:verysecret@account.dfs.core.windows.net/x",
        "abfs://container@account.dfs.core.windows.net/x?sig=verysecret",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    for ask in (
        lambda: located(text),
        lambda: parse_specification(SPECIFICATION | {"run": {"storage": text}}, "spec.yaml"),
        lambda: DecoupledTrainer(SPECIFICATION, run_dir=text),
    ):
        with pytest.raises(InputError, match="credentials or a query") as caught:
            ask()
        assert "verysecret" not in caught.value.message and "environment" in caught.value.message


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_address_of_a_server_without_a_host_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://:9000")
    with pytest.raises(InputError, match=f"{name} in the environment, for run.storage: found 'http://:9000'"):
        require_usable("s3://kept/runs", 1.0)


def test_a_client_that_panics_is_told_as_any_other_that_fails(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    panic = type("PanicException", (BaseException,), {})
    objects = Objects(address)

    def panics(*_: object, **__: object) -> None:
        raise panic("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(objects, "_fs", SimpleNamespace(rm_file=panics))
    with pytest.raises(ObjectsError, match="unwrap"):
        objects.delete("file")


def test_places_are_read_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "mine")
    monkeypatch.chdir(tmp_path)
    assert located("s3://$BUCKET/runs/") == "s3://mine/runs"
    assert located("abfs://box@account.dfs.core.windows.net/x") == "abfs://box@account.dfs.core.windows.net/x"
    assert located(f"file://{tmp_path}/a") == located("a") == str(tmp_path / "a")
    monkeypatch.setenv("RUNS", "s3://mine/runs")
    assert located("$RUNS/") == "s3://mine/runs" and placed("$RUNS") == "s3://mine/runs"
    assert located("file:///a%20b c") == "/a b c"
    wrong = ["file://a", "s3://$NOWHERE/x", "s3://", "s3:///x", "s3:/mine/x", "s3://mine//x", "file:/a"]
    for text in [*wrong, "s3://mine/x/..", "s3://mine/./x", "s3://mine/x\n", "file:///%00"]:
        with pytest.raises(InputError, match=r"^run\.storage: found"):
            located(text)
    for secret in ("s3://verysecret@mine/x", "s3://mine/x?sig=verysecret"):
        monkeypatch.setenv("RUNS", secret)
        with pytest.raises(InputError, match="credentials or a query") as caught:
            located("$RUNS")
        assert "verysecret" not in caught.value.message


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(InputError, match=r"run\.storage.*pip install 'lowdimfa\[s3\]'"):
        CheckpointStore("s3://bucket/run")
    with pytest.raises(InputError, match=r"run\.storage.*nosuch"):
        CheckpointStore("nosuch://bucket/run")


class _Late:
    """A store in which another trainer takes the run over while this one's manifest is on its way."""

    def __init__(self, store: CheckpointStore, meanwhile: Callable[[], None]) -> None:
        self._storage, self._meanwhile = store._storage, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    @contextmanager
    def writing(self, name: str, size: int = 0) -> Iterator[Any]:
        if name.endswith(MANIFEST_FILE):
            self._meanwhile()
        with self._storage.writing(name, size) as file:
            yield file


@pytest.mark.parametrize("steps", [(310, 320), (220,), ()])
def test_a_manifest_that_comes_after_the_run_was_taken_over_deletes_nothing(
    steps: tuple[int, ...], address: str
) -> None:
    first, second = CheckpointStore(address), CheckpointStore(address, keep=9)
    save(first, 200, 200.0)
    first.claim()
    attempt = first.begin(300)
    entries = [write_block(attempt, state(1.0))]

    def meanwhile() -> None:
        second.claim()
        for step in steps:
            save(second, step, float(step))

    first._storage = _Late(first, meanwhile)  # type: ignore[assignment]
    with pytest.raises(InputError, match="another trainer has taken over"):
        first.commit(300, entries, {})
    assert second.list() == [200, *steps]


def test_objects_that_stand_for_folders_are_none_of_a_run_s(tmp_path: Path) -> None:
    """As consoles and tools for copies make them: of no bytes, and listed by the folder's name."""

    class Markers(Objects):
        def __init__(self) -> None:
            self.address, self._root = "s3://kept/run", "kept/run"
            names = {"kept/run": 0, "kept/run/logs": 0, "kept/run/logs/a.log": 3, "kept/run/empty": 0}
            self._fs = SimpleNamespace(
                find=lambda *_, **__: {name: {"size": size} for name, size in names.items()}
            )

    assert Markers().files() == {"logs/a.log": 3, "empty": 0}


def test_a_full_disk_here_is_no_fault_of_the_store(tmp_path: Path) -> None:
    objects = Objects(f"memory://{tmp_path.name}")
    with objects.writing("large") as file:
        file.write(bytes(100))
    with pytest.raises(OSError, match="No space left") as caught:
        objects.fetch("large", Path("/dev/full"))
    error = refusal("a checkpoint can't be read", objects.place("large"), caught.value)
    assert type(error) is DiskFullError and "/dev/full" in error.message
