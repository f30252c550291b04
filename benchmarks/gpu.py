"""Blocks on a GPU: computation with and without ``compile``, copies, transports. Run ``python -m benchmarks.gpu``."""

from __future__ import annotations

import argparse
import json
import queue
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from benchmarks.reporting import environment, markdown_table
from lowdimfa.block import Block
from lowdimfa.build import build_block
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.partitioning import partition
from lowdimfa.services.block.devices import Cuda, NoCopies, StreamedCopies
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.stream.carriers import Carrier, Here
from lowdimfa.services.stream.frames import Message
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.sender import Sender
from lowdimfa.services.stream.torch_carrier import TorchCarrier
from lowdimfa.tickets import Ticket

SAMPLES, WIDTH, DEPTH = 256, 4096, 6
ROUNDS, LIVENESS = 20, 30.0


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, with all that it began on the device."""
    times = []
    for _ in range(5 + ROUNDS):  # the first ones warm up
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times[5:])


def make_block(device: torch.device, compiled: bool) -> Block:
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    plans = partition(nn.Sequential(*layers, nn.Linear(WIDTH, 10)), [str(2 * DEPTH)], torch.zeros(2, WIDTH))
    feedback = FeedbackConfig(q_rule="hebbian")
    training = TrainingConfig(total_steps=1000, compile=compiled)
    return build_block(plans[0], error_shape(plans, feedback), feedback, training, device)


def computation(device: torch.device, compiled: bool) -> dict[str, float]:
    """Time a micro-batch's forward, its forward and update, and both with the optimiser's step."""
    block, ticket = make_block(device, compiled), Ticket(0, 0)
    inputs = torch.randn(SAMPLES, WIDTH, device=device)
    error = torch.randn(SAMPLES, 10, device=device) / SAMPLES

    def update() -> None:
        block.forward(inputs, ticket)
        block.receive_error(ticket, error)

    def step() -> None:
        update()
        block.step()

    name = "compiled" if compiled else "eager"
    return {
        f"{name}_forward_ms": milliseconds(lambda: block.forward(inputs, ticket)),
        f"{name}_update_ms": milliseconds(update),
        f"{name}_step_ms": milliseconds(step),
    }


def copies(device: torch.device) -> dict[str, float]:
    """Time an activation's way to the device and back: page-locked in streams of their own, and pageable."""
    tensor, streamed = torch.randn(SAMPLES, WIDTH), StreamedCopies(Cuda(device))

    def pinned() -> None:
        streamed.to_host(*streamed.to_device(tensor).use()).wait()

    return {
        "copies_pinned_ms": milliseconds(pinned),
        "copies_pageable_ms": milliseconds(lambda: tensor.to(device).cpu()),
    }


def transport(source: torch.device, target: torch.device, nccl: bool) -> float:
    """Time an activation from one device's memory to another's, by NCCL or by the host's memory and gRPC."""
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    security = Security.loopback()

    def fail(error: Exception) -> None:
        raise error

    kind = TorchCarrier if nccl else Carrier
    limit = SampleLimit.of((WIDTH,), torch.float32, SAMPLES)
    there = kind(Here(1, "127.0.0.1", LIVENESS, target)).downstream(2, limit)
    receiver = Receiver("benchmark", 1, 0, 2, limit, inbox.put, fail, carrier=there)
    server = RpcServer("benchmark", security, LIVENESS)
    server.add(receiver)
    server.start()
    here = kind(Here(0, "127.0.0.1", LIVENESS, source)).upstream(server.address, 2, limit)
    sender = Sender(server.address, security, "benchmark", 0, 1, 2, LIVENESS, fail, carrier=here)
    sender.start()
    outward = StreamedCopies(Cuda(source), direct=nccl)
    inward = NoCopies() if nccl else StreamedCopies(Cuda(target))
    tensor = torch.randn(SAMPLES, WIDTH, device=source)

    def pass_on() -> None:
        sender.send("train", Ticket(0, 0), outward.to_next_block(tensor).wait())
        activation = inbox.get(timeout=LIVENESS)
        inward.to_device(*activation.tensors).use()
        receiver.release(activation)

    try:
        return milliseconds(pass_on)
    finally:
        sender.close()
        receiver.close()
        server.stop(grace=0)


def transports() -> dict[str, float | str]:
    """Time both transports, NCCL between two GPUs where there are two: it connects no two blocks on one."""
    first = torch.device("cuda", 0)
    found: dict[str, float | str] = {"transport_grpc_ms": transport(first, first, nccl=False)}
    if torch.cuda.device_count() < 2:
        return found | {"transport_nccl_ms": "skipped: it needs two GPUs, and this machine has one"}
    second = torch.device("cuda", 1)
    between = {"transport_grpc_two_gpus_ms": transport(first, second, nccl=False)}
    return found | between | {"transport_nccl_ms": transport(first, second, nccl=True)}


def main() -> int:
    """Measure, print a table and with ``--json`` one object; return 2 on a machine without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda"], default="cuda", help="(default cuda)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no GPU on this machine; nothing was measured", file=sys.stderr)
        return 2
    device = torch.device(asked.device, 0)
    figures: dict[str, float | str] = {}
    for compiled in (False, True):
        figures |= computation(device, compiled)
    figures |= copies(device)
    figures |= transports()
    rows = [[name, value if isinstance(value, str) else f"{value:.3f}"] for name, value in figures.items()]
    print(markdown_table(["figure", "median"], rows))
    if asked.json:
        print(json.dumps(environment(device) | figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
