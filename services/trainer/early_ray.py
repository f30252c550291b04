"""A Ray for one command, which starts while the command still imports torch and checks what it was given.

``python -m lowdimfa.services.trainer.early_ray FOLDER CPUS`` starts it, with workers that come for forks to the door in
FOLDER, and says on standard output where it is, or why it is not there. It ends it, and removes the folder, when its
standard input ends: so however the command ends, and at whatever point of the start, nothing is left.

The command's side of it imports next to nothing, since it is there first.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.recovery.deadlines import longest_silence
from lowdimfa.services.run.loading import loading
from lowdimfa.services.trainer import families, forks

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""For Ray, where the environment has no others."""

END_SECONDS = 20.0
"""Longest wait until a Ray that has started has ended everything; what it leaves is ended and removed then."""


def local_cpus(blocks: int, cpus_per_block: float) -> int:
    """Return how many CPUs a Ray started for one run should count, so that all blocks fit on few cores."""
    return max(os.cpu_count() or 1, int(-(-blocks * cpus_per_block // 1)))


def not_started(reason: str) -> ResourceError:
    """Return the error for a Ray that does not come up."""
    first = reason.strip().partition(". ")[0]
    return ResourceError(
        f"Ray could not be started on this machine ({first}); end other work on it, or use --engine local"
    )


class EarlyRay:
    """One that has begun to start.

    Parameters
    ----------
    cpus
        That it counts.

    Raises
    ------
    OSError
        There can be no such process, or no door.
    """

    def __init__(self, cpus: int) -> None:
        # Ray sets it for one that it starts, and reads it in those that join when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.door = forks.Door.make()
        pipe, folder = subprocess.PIPE, self.door.folder
        # `-P`: modules in this folder are the user's, and not there for ours to find in place of the standard library's.
        command = [sys.executable, "-P", "-m", __name__, str(folder), str(cpus)]
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            self.door.listening.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def join(self, liveness: float, **options: Any) -> Callable[[], None]:
        """Connect this process to it once it is there; return what ends it.

        Parameters
        ----------
        liveness
            Seconds from which the deadline derives.
        options
            Of ``ray.init``.

        Raises
        ------
        ResourceError
            It did not start.
        """
        import ray  # here, as this module is imported before torch

        try:
            ray.init(address=self._address(longest_silence(liveness, started=False)), **options)
        except BaseException as error:
            self.give_up()
            if isinstance(error, LowdimfaError) or not isinstance(error, Exception):
                raise
            raise not_started(str(error)) from error  # Ray raises plain exceptions here
        return self._end

    def give_up(self) -> None:
        """Let it end, without a wait for that."""
        self.door.listening.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _address(self, seconds: float) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise not_started(f"it took longer than {seconds:g} s")
        said = json.loads(self._process.stdout.readline() or '{"ended": ""}')
        if "ended" in said:
            raise not_started("its process has ended")
        if "error" in said:
            raise ResourceError(said["error"])
        return str(said["address"])

    def _end(self) -> None:
        import ray

        server = forks.prepared()
        ray.shutdown()
        if server:
            server.end()
        self.give_up()
        try:
            self._process.wait(2 * END_SECONDS)  # it has that deadline itself, and clears away
        except subprocess.TimeoutExpired:
            families.destroy(psutil.Process(self._process.pid))
            self._process.wait()


_begun: list[EarlyRay] = []


@contextlib.contextmanager
def begun(path: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Have a Ray start for the run of a specification, which the body may `take`; one that it leaves is ended.

    Where a specification can't be read, or there can be no fork server for its workers, none starts.
    """
    from lowdimfa.services.spec.load import load_unchecked  # here: who holds Ray needs none of it

    with contextlib.suppress(OSError, LowdimfaError):
        if forks.wanted():
            wanted = load_unchecked(path, overrides)
            # One more, for the trainer: Ray makes as many workers ready.
            _begun.append(EarlyRay(1 + local_cpus(wanted.workers, wanted.placement.cpus_per_block)))
    try:
        yield
    finally:
        if early := take():
            early.give_up()


def take() -> EarlyRay | None:
    """Return the one that has begun to start, if there is one; whoever takes it ends it."""
    return _begun.pop() if _begun else None


def prepare_workers() -> None:
    """Import what workers need, and fork the server for them; see `forks.prepare`."""
    forks.prepare(_begun[0].door if _begun else None)


def main() -> None:
    """Have a process hold a Ray until standard input ends; see that nothing is left of both.

    Two processes, since one that has to break its own start off would clear away beside it.
    """
    folder, cpus = Path(sys.argv[1]), int(sys.argv[2])
    families.adopt_orphans()
    ended, started = os.pipe()
    holder = os.fork()
    if not holder:
        os.close(ended)
        _hold(folder, cpus, started)
    # Where all processes get one, as those of a service that is stopped, the end of the others is this one's too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in (1, started):  # the holder's alone
        os.close(descriptor)
    _await_end(ended)
    families.end_family(psutil.Process())
    # As Ray looks for it, which names a session after its process.
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for session in Path(place, "ray").glob(f"session_*_{holder}"):
        families.forget_session(session)
    shutil.rmtree(folder, ignore_errors=True)


def _await_end(ended: int) -> None:
    """Wait for the end of who holds a Ray, or of standard input if none has started by then.

    Parameters
    ----------
    ended
        Descriptor that can be read from once the Ray has started, and ends with its holder.
    """
    has_started = told = False
    with selectors.DefaultSelector() as selector:
        for source in (0, ended):
            selector.register(source, selectors.EVENT_READ)
        while ready := selector.select(END_SECONDS if told else None):
            for key, _ in ready:
                if key.fd == 0:
                    told = True
                    selector.unregister(0)
                elif os.read(ended, 1):
                    has_started = True
                else:
                    return
            if told and not has_started:
                return


def _hold(folder: Path, cpus: int, started: int) -> NoReturn:
    """Start a Ray and say where it is; end it when standard input ends."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with loading():
            from lowdimfa.services.trainer.local_ray import start_local  # it imports Ray

        cluster = start_local(folder, num_cpus=cpus)
        os.write(started, b"1")
        _say(answer, address=cluster.address)
        sys.stdin.buffer.read()
        cluster.end()
    except ResourceError as error:
        _say(answer, error=error.message)
    except Exception as error:  # such as of a Ray that is installed by half
        _say(answer, error=not_started(f"{type(error).__name__}: {error}").message)
    finally:
        os._exit(0)  # Ray's own end would wait for what is gone


def _say(answer: IO[str], **words: str) -> None:
    with contextlib.suppress(OSError):  # nobody may listen any more
        print(json.dumps(words), file=answer, flush=True)


if __name__ == "__main__":
    main()
