"""Reading ahead in processes of their own, by torch's loader: the same samples, sooner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data._utils import worker as torch_worker

from lowdimfa.data import items
from lowdimfa.data.fingerprint import differing
from lowdimfa.data.items import Samples
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError, LowdimfaError, ResourceError, unforeseen
from lowdimfa.tickets import Ticket
from lowdimfa.values import Inputs

Request = tuple[str, int, int]
"""``train``, step and micro-batch; or ``test``, 0 and which batch of an evaluation."""

Read = tuple[Inputs | None, Tensor | None] | LowdimfaError
"""Inputs and targets, as far as they are wanted; or why there are none."""


@dataclass(frozen=True)
class Ahead:
    """How data are read ahead.

    Attributes
    ----------
    make
        Makes the same reader in another process, into which it is pickled.
    workers
        Processes.
    prefetch
        Batches that each of them may have ready or in work.
    steps
        Of the run, behind which nothing is read.
    inputs, targets
        Which parts are wanted.
    rank, replicas
        Only the micro-batches ``rank``, ``rank + replicas`` and so on of a step are, and such batches of an evaluation.
    whole_steps
        But of a step all micro-batches.
    """

    make: Callable[[], Reader]
    workers: int
    prefetch: int
    steps: int
    inputs: bool = True
    targets: bool = True
    rank: int = 0
    replicas: int = 1
    whole_steps: bool = False


class WorkerReader(Reader):
    """A `Reader` whose micro-batches and evaluation batches worker processes read ahead, in the order of a run.

    Whoever asks for something else than what comes next, such as an evaluation, lets them begin there. For one thread.

    Parameters
    ----------
    reader
        What it takes the place of.
    ahead
        What is read ahead, and how.
    """

    def __init__(self, reader: Reader, ahead: Ahead) -> None:
        super().__init__(reader.dataset, reader.order, reader.types)
        self._ahead = ahead
        self._sequence = WorkerSequence(ahead, reader.order.microbatches, self.evaluation_batches)
        self._expected: Iterator[Request] = iter(())
        self._loader: DataLoader[Read] | None = None
        self._arriving: Iterator[Read] = iter(())
        self._fingerprint = ""

    def microbatch(self, ticket: Ticket) -> Samples:
        """Return a training micro-batch."""
        return self._take(("train", ticket.step, ticket.microbatch))

    def evaluation_batch(self, index: int) -> Samples:
        """Return a batch of an evaluation."""
        return self._take(("test", 0, index))

    def fingerprint(self) -> str:
        """Return that of the data, which is computed once."""
        self._fingerprint = self._fingerprint or super().fingerprint()
        return self._fingerprint

    def close(self) -> None:
        """End the workers."""
        self._expected, self._arriving, self._loader = iter(()), iter(()), None

    def _take(self, request: Request) -> Samples:
        """Return what comes next, or begin to read ahead from there.

        Raises
        ------
        LowdimfaError
            It can't be read.
        ResourceError
            A worker has ended.
        """
        self.fingerprint()  # what the data set itself raises is none of the workers'
        try:
            if next(self._expected, None) != request:
                self._begin(request)
            read = next(self._arriving)
        except RuntimeError as error:
            lost = self._lost(error)
            self.close()
            raise lost from error
        if isinstance(read, LowdimfaError):
            self.close()
            raise read
        inputs, targets = read
        return Samples(lambda: _present(inputs), lambda: _present(targets))

    def _begin(self, request: Request) -> None:
        if self._loader is None:
            self._loader = self._start()
        self._sequence.first = request
        self._expected = iter(self._sequence)
        next(self._expected)
        self._arriving = iter(self._loader)

    def _start(self) -> DataLoader[Read]:
        ahead = self._ahead
        self._doing = torch.full((ahead.workers, 3), -1).share_memory_()  # type: ignore[no-untyped-call]
        # Forks of processes with threads of gRPC may hang; one that has imported torch once makes each worker at once.
        context = _Context()
        context.set_forkserver_preload([__name__, type(ahead.make).__module__])
        return DataLoader(
            _Work(ahead, self.fingerprint(), self._doing, torch.get_num_threads()),
            batch_size=None,
            sampler=self._sequence,
            num_workers=ahead.workers,
            prefetch_factor=ahead.prefetch,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=_begin_work,
            multiprocessing_context=context,
            persistent_workers=True,
            generator=torch.Generator(),  # else it would draw from the default one
        )

    def _lost(self, error: RuntimeError) -> ResourceError:
        """Return what says which worker has ended, and over which sample."""
        alive = {process.pid for process in multiprocessing.active_children()}
        lost = [(number, test) for pid, number, test in self._doing.tolist() if pid not in alive]
        names = [f"{'test' if test else 'training'} sample {number}" for number, test in lost if number >= 0]
        over = " and ".join(dict.fromkeys(names))
        return ResourceError(
            f"data.workers: a process that reads ahead has ended{over and f' over {over}'} ({error}). It may have had "
            "too little memory, or shared memory (/dev/shm): fewer data.workers or a smaller data.prefetch need less."
        )


class WorkerSequence:
    """What is read from a request on, until the end of the run or of the evaluation."""

    def __init__(self, ahead: Ahead, microbatches: int, evaluation_batches: int) -> None:
        self._ahead, self._microbatches, self._evaluation_batches = ahead, microbatches, evaluation_batches
        self.first: Request = ("train", 0, 0)

    def __iter__(self) -> Iterator[Request]:
        kind, begins, first = self.first
        own = self._ahead.replicas
        if kind == "test":
            yield from (("test", 0, index) for index in range(first, self._evaluation_batches, own))
            return
        start, stride = (0, 1) if self._ahead.whole_steps else (self._ahead.rank, own)
        for step in range(begins, self._ahead.steps):
            yield from (("train", step, part) for part in range(first, self._microbatches, stride))
            first = start


class _Work(TorchDataset[Read]):
    """Reads what is requested, in a worker process."""

    def __init__(self, ahead: Ahead, fingerprint: str, doing: Tensor, threads: int) -> None:
        self._ahead, self._fingerprint, self._doing, self._threads = ahead, fingerprint, doing, threads
        self._reader: Reader | None = None

    def begin(self, number: int) -> None:
        """Make the process a worker: it leaves Ctrl-C to others, ends with its parent, has as many threads."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
        torch.set_num_threads(self._threads)  # the same bits
        own = self._doing[number].numpy()
        own[0] = multiprocessing.current_process().pid
        self._own = items.doing = own[1:]

    def __getitem__(self, request: Request) -> Read:
        kind, step, part = request
        self._own[:] = -1, kind == "test"
        try:
            reader = self._made()
            samples = (
                reader.microbatch(Ticket(step, part)) if kind == "train" else reader.evaluation_batch(part)
            )
            wanted = self._ahead.inputs, self._ahead.targets
            return samples.inputs() if wanted[0] else None, samples.targets() if wanted[1] else None
        except LowdimfaError as error:
            return error.plain()
        except BaseException as error:  # whatever the user's code raises
            return unforeseen(error, "the data can't be read")
        finally:
            self._own[0] = -1

    def _made(self) -> Reader:
        if self._reader is None:
            reader = self._ahead.make()
            if differing(reader.fingerprint(), self._fingerprint):
                raise InputError(
                    "data.factory",
                    "other samples in a process that reads ahead than in the one that began it",
                    "the same in every process",
                    "Does the factory depend on the order of a listing or of a set, or on what is in memory?",
                )
            self._reader = reader
        return self._reader


class _Process(ForkServerProcess):
    """A process that doesn't run the user's program once more, as it needs nothing of it."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_program():
            return ForkServerProcess._Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process


_STARTING = threading.Lock()


@contextmanager
def _without_program() -> Iterator[None]:
    """Hide where the program came from, of which `multiprocessing` makes a module in each new process."""
    program = vars(sys.modules["__main__"])
    with _STARTING:
        kept: dict[str, Any] = {name: program[name] for name in ("__file__", "__spec__") if name in program}
        program.pop("__file__", None)
        program["__spec__"] = None
        try:
            yield
        finally:
            program.update(kept)


def _begin_work(number: int) -> None:
    work: Any = get_worker_info().dataset  # type: ignore[union-attr]
    work.begin(number)
    torch_worker._worker_info = None  # by which streams take a share, in an order of its own


def _end_with(process: Any) -> None:
    """End when a process does: torch's worker looks after the process that forked it, which is another one."""
    process.join()
    os._exit(1)


def _as_it_is(read: Read) -> Read:
    return read


def _present(part: Any) -> Any:
    assert part is not None, "only what was wanted is asked for"
    return part
