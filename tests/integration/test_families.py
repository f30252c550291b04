"""Processes are ended with all below them, whatever the clock of the machine does meanwhile."""

from __future__ import annotations

import subprocess
import sys
from itertools import count

import psutil
import pytest

from lowdimfa.services.trainer import families, local_ray

PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()', *sys.argv[2:]], stdin=0);"
    "print(child.pid, flush=True); input()"
)


def test_nothing_is_below_a_process_whose_number_another_one_has_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever ends a Ray's processes would end a stranger's."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        ended, stranger = psutil.Process(parent.pid), psutil.Process(parent.pid)
        monkeypatch.setattr(ended, "_ident", (parent.pid, 0.0))  # it began at another time
        found = families.below(stranger), families.below(ended)
        families.destroy(stranger)
    assert found[0] and not found[1]


def test_a_ray_that_another_program_has_started_is_not_taken_for_ours() -> None:
    pipe, word = subprocess.PIPE, "ray::"
    before = families.below(psutil.Process())
    with (
        subprocess.Popen([sys.executable, "-c", PARENT, "other", word], stdin=pipe, stdout=pipe) as other,
        subprocess.Popen([sys.executable, "-c", "input()", word], stdin=pipe) as own,
    ):
        assert other.stdout is not None and other.stdout.readline()
        found = {process.pid for process in local_ray._started(before)}
        for each in (other, own):
            families.destroy(psutil.Process(each.pid))
    assert found == {own.pid}


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the times of processes are kept as they were")
def test_a_clock_that_is_put_back_hides_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe) as parent:
        assert parent.stdout is not None
        try:
            child = psutil.Process(int(parent.stdout.readline()))
            earlier = count()
            with monkeypatch.context() as patch:
                # By it psutil makes times of the wall clock, anew for each process.
                patch.setattr("psutil._pslinux.boot_time", lambda: 1e9 - next(earlier))
                own = psutil.Process()
                assert families.below(own) >= {psutil.Process(parent.pid), child}
                assert families.below(psutil.Process(parent.pid)) == {child}
            families.destroy(psutil.Process(parent.pid))
        finally:
            parent.kill()
    assert not families.lives(child)
