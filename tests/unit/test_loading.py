"""A signal that arrives while modules are imported: it ends the command, whatever the modules do with exceptions."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import pytest

from lowdimfa.services.run.loading import load, loading

BOTH = (signal.SIGINT, signal.SIGTERM)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


@pytest.fixture(params=BOTH)
def handled(request: pytest.FixtureRequest) -> int:
    before = {number: signal.signal(number, interrupt) for number in BOTH}
    request.addfinalizer(lambda: [signal.signal(*each) for each in before.items()])
    return int(request.param)


@pytest.mark.parametrize("instead", ["pass", "raise ImportError"])
def test_a_signal_that_a_module_swallows_ends_the_command_all_the_same(
    instead: str, handled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"swallows_{handled}_{len(instead)}"
    (tmp_path / f"{name}.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({handled})\nexcept BaseException:\n    {instead}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt, match=str(handled)):
        load(name)
    assert [signal.getsignal(number) for number in BOTH] == [interrupt, interrupt]


def test_a_signal_whose_handler_only_takes_note_ends_nothing() -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        with loading():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM]


def test_threads_have_no_handlers_and_import_as_ever() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            load("json")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed
