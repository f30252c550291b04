"""Latency and cost of transports, of the broadcast, of a whole pipeline; memory of a block. Takes some minutes.

``python -m benchmarks.transport`` measures between real processes of this machine, over real connections: activations
of 64 KB to 16 MB by each transport; the same through shared memory beside what torch has for tensors between processes
(Gloo, ``torch.multiprocessing``); the broadcast of a 10 KB error to 1 to 8 subscribers, beside the same bytes by gRPC
alone; the processor time that a pipeline of blocks takes per micro-batch and block beyond its computation (the same
computation in as many processes at once, without transport); the memory of a block in the middle after few and many
steps, with few and many blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from benchmarks.reporting import RESULTS, environment, write_result
from benchmarks.transport.carriers import carriers
from benchmarks.transport.fanout import broadcast
from benchmarks.transport.pipeline import memory, overhead
from benchmarks.transport.tables import tables
from benchmarks.transport.wires import activations

TRANSPORTS = ("grpc", "shared_memory")
SIZES = {64: 400, 256: 400, 1024: 200, 16384: 40}
"""Kilobytes of an activation, and how many of them are sent."""
CARRIED = {64: 200, 1024: 100, 16384: 20}
"""The same for a turn of the comparison with torch's carriers."""
PARTS = ("activations", "carriers", "broadcast", "overhead", "memory")


def measure(parts: list[str], repeats: int) -> dict[str, Any]:
    """Measure the parts that are asked for."""
    found: dict[str, Any] = {}
    if "activations" in parts:
        found["activations"] = [
            activations(transport, kilobytes, count)
            for kilobytes, count in SIZES.items()
            for transport in TRANSPORTS
        ]
    if "carriers" in parts:
        found["carriers"] = [
            row for kilobytes, count in CARRIED.items() for row in carriers(kilobytes, count, repeats)
        ]
    if "broadcast" in parts:
        found["broadcast"] = [broadcast(subscribers, turns=9) for subscribers in (1, 2, 4, 8)]
    if "overhead" in parts:
        found["overhead"] = {transport: overhead(transport, 3, 50, repeats) for transport in TRANSPORTS}
        best = found["overhead"]["shared_memory"]["overhead_ms"]
        found["transport_cpu_ms_per_microbatch"] = statistics.median(best)
    if "memory" in parts:
        found["memory"] = [memory("shared_memory", blocks, 100, 2000) for blocks in (3, 8)]
    return found


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="what to measure, with commas (default: all)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=7,
        help="rounds of the pipeline, turns of the carriers (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    parser.add_argument(
        "--write",
        action="store_true",
        help="store the result in benchmarks/results, where parts that were not measured stay as they are",
    )
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found = measure(parts, arguments.repeats)
    command = (
        f"python -m benchmarks.transport --parts {arguments.parts} --repeats {arguments.repeats} --write"
    )
    result = {
        "benchmark": "transport",
        "commands": dict.fromkeys(parts, command),
        "environment": environment(),
        **found,
    }
    print(tables(found), flush=True)
    if arguments.write:
        path = RESULTS / "transport.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"commands": {}}
        write_result("transport", before | result | {"commands": before["commands"] | result["commands"]})
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
