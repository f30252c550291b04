"""A client of the job service, as the command line uses it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from lowdimfa.errors import InputError, PeerError
from lowdimfa.services.coordinator.jobs import Event, JobState
from lowdimfa.services.coordinator.messages import job_fields, message_to_event, state_to_message
from lowdimfa.services.coordinator.statuses import error_of
from lowdimfa.services.rpc.certificates import channel_credentials
from lowdimfa.services.rpc.connection import Backoff, await_answer, is_transient
from lowdimfa.services.rpc.options import client_options
from lowdimfa.services.rpc.security import is_loopback
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from lowdimfa.services.rpc.v1 import coordinator_pb2_grpc

T = TypeVar("T")

OPEN_SECONDS = 1.0
"""A stream that was open for so long had been let in: after its end the service is looked for anew."""

FIRST_SECONDS = 2.0
"""How long a service is looked for that has not answered yet: where none listens, waiting helps nobody."""


@dataclass(frozen=True)
class Connection:
    """Where the service is, and what this client shows of itself.

    Attributes
    ----------
    address
        ``host:port``.
    token
        Sent with every call; empty for none.
    authority
        PEM file of the authority that the server's certificate must come from. It, or ``tls``, turns TLS on.
    tls
        TLS with the authorities that this machine trusts.
    certificate, key
        PEM files of the client's own certificate, where the server asks for one.
    insecure
        Whether a token may travel in the clear beyond this machine.
    liveness
        Seconds of silence after which the service counts as lost.
    """

    address: str
    token: str = field(default="", repr=False)
    authority: Path | None = None
    tls: bool = False
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    liveness: float = 30.0

    def channel(self) -> Any:
        """Return a `grpc.Channel`.

        Raises
        ------
        InputError
            The address is beyond this machine and there is no TLS; or a file can't be read, or isn't what it should be.
        """
        options = client_options(self.liveness, proxy=not is_loopback(self.address))
        if (self.certificate is None) != (self.key is None):
            raise InputError("--client-cert and --client-key", "one without the other", "both, or neither")
        if self.authority is None and not self.tls and self.certificate is None:
            if not is_loopback(self.address) and not self.insecure:
                raise InputError(
                    f"coordinator {self.address}",
                    "no TLS",
                    "TLS beyond this machine",
                    "Give --ca with the authority's certificate, --tls for a public one, or --insecure.",
                )
            return grpc.insecure_channel(self.address, options)
        credentials = channel_credentials(self.authority, self.certificate, self.key)
        return grpc.secure_channel(self.address, credentials, options)


class CoordinatorClient:
    """Calls the job service; a context manager.

    Every method raises `LowdimfaError`: `InputError` for what the service refuses, `AccessError` where it doesn't let
    the client in, `PeerError` where it is out of reach for longer than the liveness, or before its first answer for
    longer than `FIRST_SECONDS`.

    Parameters
    ----------
    connection
        Where it is.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answered = False
        self._channel = connection.channel()
        self._stub: Any = coordinator_pb2_grpc.CoordinatorStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {connection.token}"),) if connection.token else ()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def submit(
        self, name: str, specification: str, files: dict[str, str], client_key: str = ""
    ) -> tuple[dict[str, Any], bool]:
        """Put a job into the queue; return it, and whether it is new. A call that got lost is made again.

        Parameters
        ----------
        name, specification, files
            See ``SubmitJobRequest``; the files are texts by path.
        client_key
            Makes the call idempotent across processes; by default one of this call alone.
        """
        request = pb.SubmitJobRequest(
            name=name,
            specification=specification,
            files=[pb.SourceFile(path=path, content=text) for path, text in files.items()],
            client_key=client_key or secrets.token_hex(16),
        )
        answer = self._call(self._stub.SubmitJob, request)
        return job_fields(answer.job), answer.created

    def get(self, job_id: str) -> dict[str, Any]:
        """Return a job, with its ``specification``."""
        answer = self._call(self._stub.GetJob, pb.GetJobRequest(id=job_id))
        return job_fields(answer.job) | {"specification": answer.specification}

    def jobs(
        self,
        states: Sequence[JobState] = (),
        owner: str = "",
        name_prefix: str = "",
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield jobs, the newest first, page by page."""
        request = pb.ListJobsRequest(
            states=[state_to_message(state) for state in states],
            owner=owner,
            name_prefix=name_prefix,
            page_size=min(limit, 500) if limit else 500,
        )
        left = limit
        while True:
            answer = self._call(self._stub.ListJobs, request)
            for job in answer.jobs[:left]:
                yield job_fields(job)
            left = None if left is None else left - len(answer.jobs)
            if not answer.next_page_token or (left is not None and left <= 0):
                return
            request.page_token = answer.next_page_token

    def stop(self, job_id: str, now: bool) -> dict[str, Any]:
        """Ask a job to stop, after a checkpoint or at once; return it."""
        mode = pb.STOP_MODE_NOW if now else pb.STOP_MODE_GRACEFUL
        return job_fields(self._call(self._stub.StopJob, pb.StopJobRequest(id=job_id, mode=mode)).job)

    def resume(self, job_id: str) -> dict[str, Any]:
        """Put a stopped or failed job back into the queue; return it."""
        # Not repeated when it got lost: if it went through, the second would say that the job is queued already.
        return job_fields(self._call(self._stub.ResumeJob, pb.ResumeJobRequest(id=job_id), once=True).job)

    def watch(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Yield a job's events until its end, across lost connections and restarts of the service.

        Parameters
        ----------
        job_id
            Of the job.
        after
            Sequence of the last event that isn't wanted.
        """
        last = after

        def stream() -> Any:
            return self._stub.WatchJob(
                pb.WatchJobRequest(id=job_id, after_sequence=last), metadata=self._metadata
            )

        for message in self._persist(stream):
            if message.sequence != last + 1:
                raise PeerError(
                    f"the service sent event {message.sequence} of job {job_id} after event {last}; watch again with "
                    f"--after {last}"
                )
            last = message.sequence
            yield message_to_event(message)

    def logs(
        self, job_id: str, tail: int = 0, follow: bool = False, sources: Sequence[str] = ()
    ) -> Iterator[tuple[str, str]]:
        """Yield lines that a job's processes wrote: the process, and the text."""
        request = pb.GetLogsRequest(id=job_id, tail=tail, follow=follow, sources=sources)
        call = self._stub.GetLogs(request, metadata=self._metadata)
        try:
            await_answer(call, self._connection.liveness)
            for line in call:
                yield line.source, line.text
        except grpc.RpcError as error:
            raise error_of(error, self._connection.address) from error

    def _call(self, method: Callable[..., T], request: Any, once: bool = False) -> T:
        """Make a call, again and again while the service is out of reach, for as long as it may be."""
        liveness = self._connection.liveness
        backoff = Backoff(liveness if self._answered else min(liveness, FIRST_SECONDS))
        backoff.remaining()  # the clock runs from now on, as an attempt may take seconds
        never = threading.Event()
        while True:
            try:
                answer = method(request, metadata=self._metadata, timeout=liveness)
                self._answered = True
                return answer
            except grpc.RpcError as error:
                if once or not is_transient(error) or not backoff.wait(never):
                    raise error_of(error, self._connection.address) from error

    def _persist(self, connect: Callable[[], Any]) -> Iterator[Any]:
        """Yield the responses of a stream that is opened again whenever it breaks."""
        backoff = Backoff(self._connection.liveness)
        never = threading.Event()
        while True:
            call, opened = connect(), time.monotonic()
            try:
                await_answer(call, backoff.remaining())
                opened = time.monotonic()
                for response in call:
                    backoff.restored()
                    yield response
                return
            except grpc.RpcError as error:
                if time.monotonic() - opened > OPEN_SECONDS:
                    backoff.restored()  # it was open, only without news
                if not is_transient(error) or not backoff.wait(never):
                    raise error_of(error, self._connection.address) from error
            finally:
                call.cancel()
