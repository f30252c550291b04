"""A file of lines on a disk that fills up: nothing torn, nothing doubled, nothing lost that fits into memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from disks import file_limit
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.monitoring import line_file
from lowdimfa.services.monitoring.line_file import LineFile

ROOM = 1 << 40
sizes = st.integers(0, 60)
writes = st.lists(sizes.map(lambda size: "x" * size), min_size=1, max_size=3)
steps = st.lists(st.tuples(writes, st.integers(0, 400) | st.just(ROOM)), max_size=30)


def numbered(lines: list[str], first: int) -> str:
    return "".join(f"{first + at}:{line}\n" for at, line in enumerate(lines))


@given(steps=steps, at_once=st.sampled_from([1, 50, 1 << 20]), restart=st.booleans())
def test_every_line_is_there_once_and_whole(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[list[str], int]],
    at_once: int,
    restart: bool,
) -> None:
    path = tmp_path_factory.mktemp("run") / "log"
    troubles: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line_file, "_AT_ONCE", at_once)
        file = LineFile(path, on_trouble=lambda reason: troubles.append(reason) or "")
        expected = ""
        for lines, room in steps:
            more = numbered(lines, expected.count("\n"))
            expected += more
            before = file.trouble
            with file_limit(room):
                file.write(more)
            content = path.read_text() if path.exists() else ""
            assert expected.startswith(content) and content[-1:] in ("", "\n")
            assert (file.trouble is None) == (content == expected)
            if room == ROOM and restart:
                file.close()  # another part of the run
            assert file.trouble is None or before is not None or "File too large" in troubles[-1]
        file.close()
    assert (path.read_text() if path.exists() else "") == expected
    assert file.missing == 0


@given(steps=steps, limit=st.integers(20, 200))
def test_beyond_the_limit_the_oldest_lines_are_given_up_and_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[str], int]], limit: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "log"
    file = LineFile(path, limit, gap=lambda lines: f"gap {lines}\n")
    count = 0
    for lines, room in steps:
        with file_limit(room):
            file.write(numbered(lines, count))
        count += len(lines)
    file.close()
    at = missing = 0
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("gap "):
            missing += int(line.removeprefix("gap "))
            at += int(line.removeprefix("gap "))
        else:
            assert int(line.partition(":")[0]) == at
            at += 1
    if at == count:
        assert missing == file.missing
    else:  # the last lines were each longer than the limit, and nothing came after them
        assert file.missing - missing == count - at


@pytest.mark.parametrize("room", [0, 1, 2, 5])
def test_a_half_line_of_a_killed_process_spoils_no_other(tmp_path: Path, room: int) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntw")
    file = LineFile(path)
    with file_limit(6 + room):
        file.write("three\n")
    file.write("four\n")
    file.close()
    assert path.read_text() == "one\ntw\nthree\nfour\n"


@pytest.mark.parametrize("quiet", [0.0, 60.0])
def test_trouble_is_told_once_and_its_line_comes_before_what_waits(
    quiet: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "QUIET_SECONDS", quiet)
    path = tmp_path / "log"
    file = LineFile(path, on_trouble=lambda reason: f"trouble: {Path(reason.split()[0]).name}\n")
    file.write("one\n")
    for _ in range(2):
        with file_limit(6):
            for line in ("two\n", "three\n"):
                file.write(line)
        assert file.trouble is not None and str(path) in file.trouble
        file.flush()
        assert file.trouble is None
        path.write_text(path.read_text().replace("two\nthree\n", ""))
    file.close()
    assert path.read_text() == "one\n" + "trouble: log\n" * (1 if quiet else 2)


def test_an_interrupted_write_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def interrupted(descriptor: int, data: memoryview) -> int:
        write(descriptor, data[:6])
        raise KeyboardInterrupt

    file = LineFile(tmp_path / "log")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "write", interrupted)
        file.write("one\ntwo\n")
    file.close()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_lines_wait_for_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    file = LineFile(tmp_path / "folder" / "log")
    file.write("one\n")
    assert file.trouble is not None
    (tmp_path / "folder").unlink()
    file.write("two\n")
    file.close()
    assert (tmp_path / "folder" / "log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("cut", [False, True])
def test_what_another_process_appends_meanwhile_stays(
    cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a trainer that was taken for lost."""
    path, write = tmp_path / "log", os.write
    file = LineFile(path)
    file.write("first\n")

    def beside(descriptor: int, data: bytes) -> int:
        with path.open("a") as other:
            other.write("another one's\n")
        written = write(descriptor, bytes(data)[:4] if cut else data)
        if cut:
            monkeypatch.setattr(line_file.os, "write", full)
        return written

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line_file.os, "write", beside)
    file.write("second\nthird\n")
    monkeypatch.setattr(line_file.os, "write", write)
    file.close()
    assert path.read_text() == "first\nanother one's\nsecond\nthird\n"
