"""Whatever the user's own code raises ends a run with its words and its place, and ends no process in silence."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError, in_words
from lowdimfa.imports import resolve
from lowdimfa.services.block.actor import BlockHost
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.trainer.actor import TrainerHost
from lowdimfa.services.trainer.api import DecoupledTrainer

KINDS = """
import sys, threading
from torch import nn
from lowdimfa.errors import NotFiniteError

class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")

class Locked(Exception):
    def __init__(self):
        super().__init__("it holds a lock")
        self.lock = threading.Lock()

class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Own(BaseException):
    pass

class OfTheProject(NotFiniteError):
    pass

RAISE = {
    "two": lambda: TwoArguments(7, "out of range"),
    "locked": Locked,
    "speechless": Speechless,
    "own": lambda: Own("mine"),
    "exit": lambda: SystemExit(0),
    "interrupt": lambda: KeyboardInterrupt("not the keyboard"),
    "generator": lambda: GeneratorExit("closed"),
    "bytes": lambda: ValueError("half \\udc80 a character"),
    "typed": lambda: OfTheProject("of the user's class"),
}

def fail(kind):
    raise RAISE[kind]()
"""
SAID = {
    "two": "TwoArguments: out of range (7)",
    "locked": "Locked: it holds a lock",
    "speechless": "Speechless: an error whose text can't be had",
    "own": "Own: mine",
    "exit": "SystemExit: 0",
    "interrupt": "KeyboardInterrupt: not the keyboard",
    "generator": "GeneratorExit: closed",
    "bytes": r"ValueError: half \udc80 a character",
    "typed": "of the user's class",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_kinds.py").write_text(KINDS)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("users_")]:
        del sys.modules[name]


def crossed(error: Any) -> LowdimfaError:
    """Return an error as a process gets it that can't import the user's modules."""
    packed = pickle.dumps(error)
    sys.modules.pop("users_kinds", None)
    sys.path.pop(0)
    copy = pickle.loads(packed)
    assert type(copy).__module__ == "lowdimfa.errors"
    return copy  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", SAID)
def test_an_error_in_a_block_crosses_as_text(
    kind: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import users_kinds  # type: ignore[import-not-found]

    host = BlockHost(Seat(1, 2), "block 1, replica 2", "block-1-replica-2")
    host._worker = SimpleNamespace()  # type: ignore[assignment]

    def run_steps(worker: BlockWorker) -> None:
        users_kinds.fail(kind)

    error = crossed(host.compute(run_steps))
    assert SAID[kind] in error.message
    if kind == "typed":
        assert type(error) is NotFiniteError
        return
    assert type(error) is LowdimfaError and error.exit_code == 1
    assert error.message.startswith("block 1, replica 2 failed during 'run steps' (")
    assert f"{folder}/users_kinds.py, line" in error.message
    assert (error.block, error.replica) == (1, 2)
    (note,) = error.__notes__
    assert note.startswith("Traceback") and "raise RAISE[kind]()" in note
    assert "raise RAISE[kind]()" in capfd.readouterr().err


@pytest.mark.parametrize("kind", SAID)
def test_an_error_in_the_trainer_crosses_as_text(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import users_kinds

    def fails(*arguments: Any, **options: Any) -> Any:
        users_kinds.fail(kind)

    monkeypatch.setattr("lowdimfa.services.trainer.actor.execute", fails)
    host = TrainerHost()
    request = SimpleNamespace(journal=lambda: None)
    error = crossed(host.fit(request))  # type: ignore[arg-type]
    assert SAID[kind] in error.message
    outcome = host.outcome()
    assert outcome is not None and outcome["event"] == "failed"


PARTS = """
import sys
import torch
from torch import nn
from users_kinds import fail

CALLS = 0

class Failing(nn.Linear):
    '''Fails in training, after the run was planned and begun.'''
    def __init__(self, kind, after):
        super().__init__(6, 6)
        self.kind, self.after, self.calls = kind, after, 0
    def forward(self, x):
        self.calls += 1
        if self.calls > self.after and (self.training or self.after < 0):
            fail(self.kind)
        return super().forward(x)

def model(kind="two", after=10**9):
    return nn.Sequential(nn.Linear(6, 6), Failing(kind, after), nn.Linear(6, 3))

def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return x[:48], x[:48, :3].argmax(1), x[48:], x[48:, :3].argmax(1)

def leave(*arguments, **options):
    sys.exit(0)

def failing_step(parameters, kind, lr=0.1):
    optimizer = torch.optim.SGD(parameters, lr=lr)
    optimizer.step = lambda closure=None: fail(kind)
    return optimizer

def failing_loss(outputs, targets):
    global CALLS
    CALLS += 1
    if CALLS > 3:
        fail("exit")
    return nn.functional.cross_entropy(outputs, targets)

class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 48
    def __getitem__(self, index):
        sys.exit(0)

def items():
    return Items(), Items()
"""


def specification(folder: Path, **sections: Any) -> dict[str, Any]:
    (folder / "users_parts.py").write_text(PARTS)
    plain: dict[str, Any] = {
        "model": {"factory": "users_parts:model", "blocks": 2},
        "data": {"factory": "users_parts:data"},
        "train": {"steps": 60, "batch_size": 16},
        "run": {"evaluate_every_epochs": 0, "tensorboard": False},
    }
    for section, values in sections.items():
        plain[section] = plain[section] | values
    return plain


def fit(folder: Path, plain: dict[str, Any], events: list[dict[str, Any]] | None = None) -> None:
    seen = [] if events is None else events
    DecoupledTrainer(
        plain, engine="local", run_dir=folder / "run", user_code=folder, on_event=seen.append
    ).fit()


@pytest.mark.parametrize("kind", sorted(SAID.keys() - {"typed", "interrupt"}))
def test_a_layer_that_fails_ends_the_run_with_its_words(kind: str, folder: Path) -> None:
    events: list[dict[str, Any]] = []
    plain = specification(folder, model={"args": {"kind": kind, "after": 20}})
    with pytest.raises(LowdimfaError) as caught:
        fit(folder, plain, events)
    assert type(caught.value) is LowdimfaError
    assert SAID[kind] in caught.value.message
    assert f"{folder}/users_parts.py, line" in caught.value.message or "users_kinds" in caught.value.message
    assert str(folder / "run" / "traceback.txt") in caught.value.message
    assert "users_parts.py" in (folder / "run" / "traceback.txt").read_text()
    assert events[-1]["event"] == "failed" and events[-1]["message"] == caught.value.message


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": {"factory": "users_parts:failing_step", "args": {"kind": "exit"}}},
        {"loss": "users_parts:failing_loss"},
    ],
    ids=["optimiser", "loss"],
)
def test_so_do_the_other_parts(train: dict[str, Any], folder: Path) -> None:
    with pytest.raises(LowdimfaError, match="SystemExit: 0"):
        fit(folder, specification(folder, train=train))


LEAVE = {"factory": "users_parts:leave"}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": LEAVE}, "model.factory"),
        ({"data": LEAVE}, "data.factory"),
        ({"train": {"optimizer": LEAVE}}, "train.optimizer"),
        ({"train": {"scheduler": LEAVE}}, "train.scheduler"),
        ({"train": {"loss": "users_parts:leave"}}, "train.loss"),
        ({"model": {"args": {"kind": "exit", "after": -1}}}, "model.factory"),
        ({"model": {"factory": "users_leaving:model"}}, "model.factory"),
    ],
)
def test_a_part_that_calls_sys_exit_is_refused_under_its_key(
    sections: dict[str, Any], key: str, folder: Path
) -> None:
    (folder / "users_leaving.py").write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(InputError, match="SystemExit: 0") as caught:
        fit(folder, specification(folder, **sections))
    assert caught.value.message.startswith(key)
    assert str(folder) in caught.value.message and ".py, line" in caught.value.message
    assert not (folder / "run").exists()


def test_an_item_that_calls_sys_exit_is_said_before_anything_is_made(folder: Path) -> None:
    with pytest.raises(LowdimfaError, match=r"SystemExit: 0.*users_parts\.py, line"):
        fit(folder, specification(folder, data={"factory": "users_parts:items"}))
    assert not (folder / "run").exists()


def test_ctrl_c_is_no_error_of_the_user_s_code(folder: Path) -> None:
    plain = specification(folder, model={"args": {"kind": "interrupt", "after": 20}})
    events: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        fit(folder, plain, events)
    assert events[-1]["code"] == "stopped"

    raised: list[BaseException] = []

    def beside() -> None:
        trainer = DecoupledTrainer(plain, engine="local", run_dir=folder / "beside", user_code=folder)
        try:
            trainer.fit()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=beside)  # to which no Ctrl-C comes
    thread.start()
    thread.join()
    assert type(raised[0]) is LowdimfaError and "KeyboardInterrupt: not the keyboard" in str(raised[0])


def refusal(path: str) -> str:
    with pytest.raises(InputError) as caught:
        resolve(path, "model.factory")
    return caught.value.message


def test_what_failed_to_import_is_named_with_its_place(folder: Path) -> None:
    (folder / "users_outer.py").write_text("import os\n\nimport users_inner\n")
    (folder / "users_inner.py").write_text("from os import path\nimport no_such_library.part\n")
    message = refusal("users_outer:model")
    assert "No module named 'no_such_library'" in message
    assert f"in {folder}/users_inner.py, line 2" in message
    assert "beside the specification" not in message  # there it is

    (folder / "users_typo.py").write_text("def model(:\n")
    assert "users_typo.py, line 1" in refusal("users_typo:model")
    assert "expected a module beside the specification" in refusal("users_absent:model")
    assert "expected a module beside the specification" in refusal("users_absent.inner:model")


def test_a_clash_of_names_is_said_in_one_sentence(folder: Path) -> None:
    for name in ("lowdimfa/net.py", "lowdimfa/__init__.py", "queue.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("def model():\n    pass\n")
    (folder / "users_indirect.py").write_text("from lowdimfa.net import model\n")
    for path, mine in {
        "lowdimfa.net:model": "lowdimfa/net.py",
        "users_indirect:model": "lowdimfa/net.py",
        "queue:model": "queue.py",
    }.items():
        message = refusal(path)
        assert f"{folder / mine} can't be imported, since" in message and "rename yours" in message
    assert "rename" not in refusal("lowdimfa.no_such_module:model")
    assert "rename" not in refusal("users_absent:model")


def test_a_text_without_end_is_cut() -> None:
    said = in_words(ValueError("x" * 2_500_000))
    assert len(said) < 5000 and said.endswith("more characters)")
