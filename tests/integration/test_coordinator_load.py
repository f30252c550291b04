"""Many watchers, many submissions, a flood and a slow reader: the service stays small and answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from coordinator_thread import SPECIFICATION
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lowdimfa.services.coordinator.access import new_token, write_tokens
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from lowdimfa.services.rpc.v1 import coordinator_pb2_grpc

WATCHERS, SUBMISSIONS = 200, 1000
MOST_BYTES = 500 << 20
SLOWEST_HEALTH = 1.0
TURNS = 10
"""How often an answer may have to wait for a processor, on a machine that is busy with other work."""
LOG_BYTES = 40 << 20


@dataclass
class Served:
    """A service in a process of its own, whose cluster can't be reached, so that every job stays queued."""

    process: subprocess.Popen[str]
    address: str
    storage: Path
    tokens: dict[str, str]

    def stub(self, channel: grpc.aio.Channel) -> coordinator_pb2_grpc.CoordinatorStub:
        return coordinator_pb2_grpc.CoordinatorStub(channel)

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[name]}"),)

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = {name: new_token(name, "submit") for name in ("ada", "watcher", "flood")}
    write_tokens(tmp_path / "tokens.json", [entry for _, entry in made.values()])
    command = [
        Path(sys.executable).parent / "lowdimfa",
        "serve",
        "--port",
        "0",
        "--http-port",
        "0",
        "--no-page",
    ]
    command += ["--storage", tmp_path / "runs", "--tokens", tmp_path / "tokens.json", "--format", "json"]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*map(str, command), "--ray-address", "127.0.0.1:1"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        address = next(line["address"] for line in lines if line["event"] == "serving")
        tokens = {name: token for name, (token, _) in made.items()}
        yield Served(process, address, tmp_path / "runs", tokens)
    finally:
        process.terminate()
        process.wait(240)
    assert process.returncode == 0


@contextmanager
def lateness() -> Iterator[list[float]]:
    """Measure for how long a thread that could go on waits for a processor: it gives the longest time."""
    longest, over = [0.0], threading.Event()

    def sleep() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(0.02)
            longest[0] = max(longest[0], time.perf_counter() - began - 0.02)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


async def keep_asking(channel: grpc.aio.Channel, until: asyncio.Event) -> float:
    """Check the health all the time and return the longest time that an answer took."""
    stub, slowest = health_pb2_grpc.HealthStub(channel), 0.0
    while not until.is_set():
        began = time.perf_counter()
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        slowest = max(slowest, time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return slowest


async def everything_at_once(served: Served) -> tuple[float, int, Counter[grpc.StatusCode]]:
    """Return the slowest health check, the largest memory, and how the flood was answered."""
    done = asyncio.Event()
    async with (
        grpc.aio.insecure_channel(served.address) as channel,
        grpc.aio.insecure_channel(served.address, [("grpc.use_local_subchannel_pool", 1)]) as separate,
    ):
        stub, ada, watcher = served.stub(channel), served.metadata("ada"), served.metadata("watcher")
        asking = asyncio.create_task(keep_asking(separate, done))
        first = (
            await stub.SubmitJob(pb.SubmitJobRequest(name="a", specification=SPECIFICATION), metadata=ada)
        ).job
        watches = [stub.WatchJob(pb.WatchJobRequest(id=first.id), metadata=watcher) for _ in range(WATCHERS)]
        for watch in watches:
            assert (await watch.read()).sequence == 1
        slow = stub.GetLogs(pb.GetLogsRequest(id=first.id), metadata=ada)
        logs = Path(first.run_dir) / "logs"
        logs.mkdir(parents=True)
        with (logs / "trainer.log").open("w") as file:
            for _ in range(LOG_BYTES >> 20):
                file.write(("x" * 1023 + "\n") * 1024)
        assert (await slow.read()).source == "trainer"  # and no more: the rest has to wait for this reader
        flood = [
            stub.ListJobs(pb.ListJobsRequest(page_size=500), metadata=served.metadata("flood"))
            for _ in range(400)
        ]
        most = 0
        for start in range(0, SUBMISSIONS, 50):
            requests = [
                pb.SubmitJobRequest(name=f"job{index}", specification=SPECIFICATION, client_key=str(index))
                for index in range(start, start + 50)
            ]
            await asyncio.gather(*(stub.SubmitJob(request, metadata=ada) for request in requests))
            most = max(most, served.memory)
        answers = await asyncio.gather(*flood, return_exceptions=True)
        await stub.StopJob(pb.StopJobRequest(id=first.id), metadata=ada)
        for watch in watches:  # each of them hears of the end, and ends
            last = None
            while (event := await watch.read()) is not grpc.aio.EOF:
                last = event
            assert last is not None and last.state.state == pb.JOB_STATE_STOPPED
        slow.cancel()
        queued = [job async for job in pages(stub, ada)]
        assert len(queued) == SUBMISSIONS
        done.set()
        codes = Counter(
            answer.code() if isinstance(answer, grpc.aio.AioRpcError) else grpc.StatusCode.OK
            for answer in answers
        )
        return await asking, max(most, served.memory), codes


async def pages(stub: coordinator_pb2_grpc.CoordinatorStub, metadata: tuple[tuple[str, str], ...]):
    request = pb.ListJobsRequest(states=[pb.JOB_STATE_QUEUED], page_size=500)
    while True:
        page = await stub.ListJobs(request, metadata=metadata)
        for job in page.jobs:
            yield job
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


@pytest.mark.slow
def test_the_service_stays_small_and_answers(served: Served) -> None:
    with lateness() as late:
        slowest, memory, codes = asyncio.run(everything_at_once(served))
    print(f"slowest health check {slowest:.3f} s, a thread {late[0]:.3f} s late")
    print(f"memory {memory / 2**20:.0f} MiB, flood {dict(codes)}")
    assert slowest < SLOWEST_HEALTH + TURNS * late[0]
    assert memory < MOST_BYTES
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED] > 0  # the flood was held back
    assert codes[grpc.StatusCode.OK] > 0  # and not cut off


@pytest.mark.slow
def test_a_client_has_so_many_streams_and_no_more(served: Served) -> None:
    async def scenario() -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            stub, ada = served.stub(channel), served.metadata("ada")
            request = pb.SubmitJobRequest(name="a", specification=SPECIFICATION)
            job = (await stub.SubmitJob(request, metadata=ada)).job
            watches = [stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=ada) for _ in range(256)]
            for watch in watches:
                await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=ada).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            other = stub.WatchJob(pb.WatchJobRequest(id=job.id), metadata=served.metadata("watcher"))
            assert (await other.read()).sequence == 1

    asyncio.run(scenario())
