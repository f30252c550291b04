"""Checkpoints: what is written comes back, a crash costs nothing, and what was tampered with is refused."""

from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.run import checkpoint_files
from lowdimfa.services.run.checkpoint import (
    BlockState,
    CheckpointStore,
    export_file,
    export_state,
    write_block,
)
from lowdimfa.services.run.storage import Folder

Blocks = dict[int, dict[str, Tensor]]
MODEL: Blocks = {
    0: {"model/a.weight": torch.arange(6.0).view(2, 3), "optimizer/a.weight/step": torch.tensor(4.0)},
    1: {"model/b.weight": torch.ones(3, dtype=torch.bfloat16), "feedback/b/Q": torch.zeros(2, 5)},
}
SHAPES = {"a.weight": (2, 3), "b.weight": (3,)}


def save(
    store: CheckpointStore, step: int, blocks: Blocks = MODEL, scalars: dict[str, Any] | None = None
) -> Path:
    directory = store.begin(step)
    states = [BlockState(i, [f"layer{i}"], tensors, scalars or {}) for i, tensors in blocks.items()]
    return store.commit(step, [write_block(directory, state) for state in states], {"run": "test"})


def file_of(path: Path, block: int) -> Path:
    """Return a block's file in a checkpoint."""
    return next(path.glob(f"block-{block}-*.safetensors"))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.contiguous().flatten().view(torch.uint8).equal(right.contiguous().flatten().view(torch.uint8))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, keep=2)


dtypes = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(
    lambda shape, dtype, k: (torch.randn(shape) * k).to(dtype), shapes, dtypes, st.integers(0, 3)
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(
    saved=st.dictionaries(names.map("model/".__add__), tensors, max_size=5),
    cut=st.integers(0, 5),
    scalars=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, saved: dict[str, Tensor], cut: int, scalars: dict[str, Any]
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("run"), keep=1)
    items = list(saved.items())
    save(store, 7, {0: dict(items[:cut]), 1: dict(items[cut:])}, scalars)
    manifest = copy.deepcopy(store.load(7))  # as when it travels to the blocks
    read = manifest.tensors(lambda name: True)
    assert read.keys() == saved.keys()
    assert all(same(read[name], saved[name]) for name in saved)
    assert [entry.scalars for entry in manifest.entries] == [scalars, scalars]
    manifest.require_same_model({name.removeprefix("model/"): tuple(t.shape) for name, t in saved.items()})


def test_tensors_are_found_by_name_whatever_the_blocks(store: CheckpointStore) -> None:
    save(store, 3)
    manifest = store.latest()
    assert manifest is not None
    assert (manifest.step, manifest.meta, manifest.path.name) == (3, {"run": "test"}, "step-00000003")
    assert [(entry.block, entry.layers) for entry in manifest.entries] == [(0, ["layer0"]), (1, ["layer1"])]
    wanted = {"model/b.weight", "optimizer/a.weight/step"}
    assert manifest.tensors(wanted.__contains__).keys() == wanted


def test_tied_and_strided_tensors_are_saved_by_value(store: CheckpointStore) -> None:
    weight = torch.arange(6.0, requires_grad=True).view(2, 3)
    save(store, 1, {0: {"model/in": weight, "model/out": weight, "model/turned": weight.T}})
    state = export_state(store.load(1))
    assert same(state["in"], weight) and same(state["out"], weight) and same(state["turned"], weight.T)


def test_loaded_tensors_outlive_the_file_and_may_be_changed(store: CheckpointStore) -> None:
    path = save(store, 1)
    loaded = export_state(store.load(1))["a.weight"]
    file_of(path, 0).write_bytes(b"")
    loaded += 1
    assert same(loaded, MODEL[0]["model/a.weight"] + 1)


def test_export_writes_the_plain_model(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 1)
    output = tmp_path / "new" / "model.safetensors"
    export_file(store.load(1), output)
    exported = load_file(output)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == SHAPES
    assert same(exported["b.weight"], MODEL[1]["model/b.weight"])
    assert [path.name for path in output.parent.iterdir()] == ["model.safetensors"]
    with pytest.raises(InputError, match="can't be written"):
        export_file(store.load(1), output / "below-a-file")
    for folder in (Path(), Path("/"), tmp_path):
        with pytest.raises(InputError, match=r"--output: found the folder"):
            export_file(store.load(1), folder)


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    assert store.latest() is None and store.list() == []
    for step in (1, 2, 3, 100_000_000):
        save(store, step)
    assert store.list() == [3, 100_000_000]
    latest = store.latest()
    assert latest is not None and latest.step == 100_000_000


def test_a_given_up_course_of_the_run_is_not_the_newest(store: CheckpointStore) -> None:
    for step in (10, 20):
        save(store, step)
    save(store, 15)
    assert store.list() == [10, 15]


def test_leftovers_are_no_checkpoints_and_go_away(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 1)
    write_block(store.begin(2), BlockState(0, [], MODEL[0], {}))
    incomplete = tmp_path / "checkpoints" / "step-00000009"
    incomplete.mkdir()
    assert store.list() == [1]
    with pytest.raises(InputError, match=r"no checkpoint of step 9; .* \(there: 1\)"):
        store.load(9)
    store.begin(2)
    save(store, 3)
    assert sorted(path.name for path in incomplete.parent.iterdir()) == ["step-00000001", "step-00000003"]


class Crash(BaseException):
    """The machine stops."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let everything that changes the disk stop at its ``call``-th call, before doing anything."""
    counter = itertools.count()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*args: Any, **kwargs: Any) -> Any:
            if next(counter) >= call:
                raise Crash
            return function(*args, **kwargs)

        return stopping

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "open", counted(Path.open))


@pytest.mark.parametrize(
    ("before", "step", "keep"), [([5], 5, 1), ([5, 6], 7, 1), ([5, 6], 7, 2), ([5, 9], 7, 2)]
)
def test_a_crash_at_any_point_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[int], step: int, keep: int
) -> None:
    new = {0: {"model/a.weight": torch.full((2, 3), 8.0)}}
    for call in itertools.count():
        store = CheckpointStore(tmp_path / str(call), keep)
        for earlier in before:
            save(CheckpointStore(tmp_path / str(call), keep=9), earlier)
        with monkeypatch.context() as patched:
            crash_at(patched, call)
            try:
                save(store, step, new)
                crashed = False
            except Crash:
                crashed = True
        found = store.latest()
        assert found is not None
        for number in store.list():
            store.load(number)
        state = export_state(found)
        if not crashed:
            assert found.step == step
        assert same(
            state["a.weight"], new[0]["model/a.weight"] if len(state) == 1 else MODEL[0]["model/a.weight"]
        )
        assert found.step in {step, max(before)} and (len(state) == 1) <= (found.step == step)

        save(store, step, new)  # the run goes on after the crash, and the leftovers are gone
        assert len(export_state(store.load(None))) == 1
        assert len(list((tmp_path / str(call) / "checkpoints").iterdir())) <= keep
        if not crashed:
            assert call > 10
            return


def test_everything_is_on_the_disk_before_the_manifest_is(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(re.sub(r"-\w{8}\.safetensors", "", re.sub(r"\.\w{8}\.partial$", ".partial", name)))
        fsync(descriptor)

    def check(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            blocks = {".block-0.partial", ".block-1.partial"}
            folders = {"step-00000001", "checkpoints", Path(store._place).name}
            assert {*blocks, ".manifest.json.partial", *folders} == {*synced}
            synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", check)
    save(store, 1)
    assert synced[:2] == ["step-00000001", "checkpoints"]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def truncate(path: Path) -> None:
    os.truncate(file_of(path, 0), 40)


def flip_a_bit(path: Path) -> None:
    file = file_of(path, 0)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def forge(path: Path) -> None:
    """Put in garbage, with the size and digest in the manifest to match."""
    garbage = b"\xff" * 64
    file_of(path, 0).write_bytes(garbage)
    digest = hashlib.sha256(garbage).hexdigest()
    rewrite(path, lambda m: m["blocks"][0].update(bytes=64, sha256=digest))


def link(path: Path) -> None:
    file = file_of(path, 0)
    file.rename(path / "elsewhere")
    file.symlink_to(path / "elsewhere")


def block(**fields: Any) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda m: m["blocks"][0].update(fields))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "block-0.safetensors: found 40 bytes; expected"),
        (flip_a_bit, "block-0.safetensors: found SHA-256"),
        (forge, "block-0.safetensors: found Error while deserializing header"),
        (link, "block-0.safetensors: found no such plain file"),
        (
            lambda path: file_of(path, 1).unlink(),
            "block-1.safetensors: found no such plain file",
        ),
        (lambda path: os.truncate(path / "manifest.json", 30), "manifest.json: found at the whole file"),
        (
            lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
            "manifest.json: found at the whole file",
        ),
        (lambda path: rewrite(path, lambda m: m.update(format=2)), "manifest.json: found at format"),
        (lambda path: rewrite(path, lambda m: m.update(step=8)), "found step 8; expected step 7"),
        (lambda path: rewrite(path, lambda m: m.update(blocks=m["blocks"][:1] * 2)), "listed twice"),
        (lambda path: rewrite(path, lambda m: m.update(surprise=1)), "at surprise"),
        (block(file="../step-00000006/block-0.safetensors"), "at blocks.0.file"),
        (block(file="/etc/passwd"), "at blocks.0.file"),
        (block(file="block-0.safetensors\n"), "at blocks.0.file"),
        (block(sha256="0" * 63), "at blocks.0.sha256"),
        (block(bytes="many"), "at blocks.0.bytes"),
        (block(tensors=["model/other"]), "found other tensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_a_good_one_named(
    store: CheckpointStore, damage: Callable[[Path], object], words: str
) -> None:
    save(store, 6)
    damage(save(store, 7))
    with pytest.raises(InputError) as caught:
        store.latest()
    assert words in re.sub(r"(block-\d)-[0-9a-f]{8}", r"\1", caught.value.message)
    assert "step-00000007" in caught.value.message
    way_back = "The older checkpoint of step 6 is good; 'lowdimfa train --resume-step 6' goes on from it."
    assert caught.value.message.endswith(way_back)
    assert store.load(6).step == 6
    manifest, damaged = store.newest_good()
    assert manifest is not None and manifest.step == 6
    assert list(damaged) == [7] and damaged[7].found in caught.value.message


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, forge, link, block(tensors=["model/other"])])
def test_a_block_verifies_the_files_that_it_reads_and_no_others(
    store: CheckpointStore, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(save(store, 7))
    hashed: list[str] = []
    digest = checkpoint_files.digest
    monkeypatch.setattr(checkpoint_files, "digest", lambda path: hashed.append(path.name[:7]) or digest(path))
    manifest = store.load(7, lazily=True)
    assert hashed == []
    for _ in range(2):
        assert manifest.tensors("model/b.weight".__eq__).keys() == {"model/b.weight"}
    assert hashed == ["block-1"]
    names = {name for entry in manifest.entries for name in entry.tensors}
    with pytest.raises(InputError, match=r"block-0-.*found .*--resume-step"):
        manifest.tensors(names.__contains__)


def test_without_a_good_one_none_is_promised(store: CheckpointStore) -> None:
    for step in (6, 7):
        truncate(save(store, step))
    with pytest.raises(InputError) as caught:
        store.load(None)
    assert "older" not in caught.value.message
    assert (store.newest_good().manifest, list(store.newest_good().damaged)) == (None, [7, 6])


def test_the_newest_good_one_is_found_past_any_number_of_damaged_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    assert store.newest_good() == (None, {})
    paths = {step: save(store, step) for step in (5, 6, 7, 8, 9)}
    good = store.newest_good()
    assert good.manifest is not None and (good.manifest.step, good.damaged) == (9, {})
    (paths[9] / "manifest.json").unlink()  # without it nothing is complete
    truncate(paths[8])
    gone = file_of(paths[7], 1).name
    (paths[7] / gone).unlink()
    flip_a_bit(paths[5])
    good = store.newest_good()
    assert good.manifest is not None and good.manifest.step == 6
    assert {step: error.file for step, error in good.damaged.items()} == {
        8: file_of(paths[8], 0),
        7: paths[7] / gone,
    }
    save(store, 8)  # the run goes on from there
    good = store.newest_good()
    assert good.manifest is not None and (good.manifest.step, good.damaged) == (8, {})


def test_a_file_that_cannot_be_read_is_damage(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 6)
    path = save(store, 7)
    read = checkpoint_files.digest

    def bad_sector(file: Path) -> str:
        if file.parent == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return read(file)

    monkeypatch.setattr(checkpoint_files, "digest", bad_sector)
    with pytest.raises(
        InputError, match=r"block-0-\w+\.safetensors: found Input/output error.* --resume-step 6"
    ):
        store.load(None)


def test_another_model_is_refused_by_name(store: CheckpointStore) -> None:
    save(store, 1)
    manifest = store.load(1)
    manifest.require_same_model(SHAPES)
    with pytest.raises(InputError, match=r"a\.weight \[2, 3\] there, \[3, 3\] in the model"):
        manifest.require_same_model(SHAPES | {"a.weight": (3, 3)})
    with pytest.raises(InputError, match=r"b\.weight \[3\] there, missing in the model"):
        manifest.require_same_model({"a.weight": (2, 3)})
    with pytest.raises(InputError, match=r"n0 missing there, \[\] in the model; n1 .*; and 3 more"):
        manifest.require_same_model(SHAPES | {f"n{i}": () for i in range(6)})


def test_storage_that_is_not_shared_is_named(store: CheckpointStore, tmp_path: Path) -> None:
    store.begin(1)
    elsewhere = CheckpointStore(tmp_path / "another-node").begin(1)
    entry = write_block(elsewhere, BlockState(0, [], MODEL[0], {}))
    for visible in (None, b"half a file"):
        if visible:
            (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
            (tmp_path / "checkpoints" / "step-00000001" / entry["file"]).write_bytes(visible)
        with pytest.raises(InputError, match=r"run\.storage: found no complete .*block-0"):
            store.commit(1, [entry], {})
    assert store.list() == []


def test_a_block_that_cannot_write_says_where(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="block 2 can't write") as caught:
        attempt = CheckpointStore(tmp_path / "run").begin(1)
        (tmp_path / "run").touch()
        write_block(attempt, BlockState(2, [], MODEL[0], {}))
    assert (caught.value.block, caught.value.setting) == (2, "run.storage")


def test_checkpoints_of_a_course_that_was_given_up_are_none_of_the_runs(tmp_path: Path) -> None:
    """Until the new course has its first they stay on the disk, to be had by their number alone."""
    store = CheckpointStore(tmp_path, keep=3)
    for step in (5, 10, 15):
        save(store, step)
    store.go_on_from(5)
    for reader in (store, CheckpointStore(tmp_path)):
        assert reader.list() == [5] and reader.load(None).step == 5 and reader.every() == [5, 10, 15]
        assert reader.newest_good().manifest.step == 5 and reader.load(15).step == 15
    again = CheckpointStore(tmp_path, keep=3)
    again.go_on_from(5)
    save(again, 12)
    assert CheckpointStore(tmp_path).list() == CheckpointStore(tmp_path).every() == [5, 12]
    again.go_on_from(12)
    assert CheckpointStore(tmp_path).list() == [5, 12]


def test_a_course_that_was_given_up_takes_no_place_of_the_new_one(tmp_path: Path) -> None:
    """As where it ended by Ctrl-C between two checkpoints of the new one: the step from which that comes stays."""
    for step in (200, 237):
        save(CheckpointStore(tmp_path, keep=2), step)
    store = CheckpointStore(tmp_path, keep=2)
    store.go_on_from(200)
    save(store, 300)
    assert store.every() == [200, 300]
    file_of(tmp_path / "checkpoints" / "step-00000300", 0).write_bytes(b"damaged")
    assert store.newest_good().manifest.step == 200


def test_a_course_that_was_given_up_may_be_taken_up_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (5, 10):
        store = CheckpointStore(tmp_path, keep=3)
        save(store, step)
    store.go_on_from(5)
    again = CheckpointStore(tmp_path, keep=1)
    again.go_on_from(10)
    assert again.list() == [5, 10]
    save(again, 15)
    assert CheckpointStore(tmp_path).list() == [15]


def test_a_crash_after_the_first_checkpoint_of_a_new_course_leaves_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the deletion of what is no longer kept ends."""
    for fails in range(1, 4):
        place = tmp_path / str(fails)
        store = CheckpointStore(place, keep=2)
        for step in (5, 10):
            save(store, step)
        store = CheckpointStore(place, keep=1)
        store.go_on_from(5)
        count = 0

        def crashing(
            self: Folder, name: str, first: str = "", *, real: Any = Folder.discard, at: int = fails
        ) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt
            real(self, name, first)

        with monkeypatch.context() as patched:
            patched.setattr(Folder, "discard", crashing)
            with suppress(KeyboardInterrupt):
                save(store, 7)
        found = CheckpointStore(place).list()
        assert found and found[-1] in (5, 7)
