"""How fast blocks with a broadcast error train, side by side with training that uses gradients.

``python -m benchmarks.throughput`` trains the same networks on the same data with the same threads per process: this
runtime with ``staleness`` 0, 1 and 2 (``lowdimfa-s1``; ``lowdimfa-s1-whole`` without micro-batches, which it needs only
where nothing may be stale; ``lowdimfa-s1-layers`` with the error at every layer of a block, so that no block has a
backward pass), backpropagation in one process (``single-2``: 2 threads, whole batches; ``single-2x4``: in 4
micro-batches), the schedules of ``torch.distributed.pipelining`` and DistributedDataParallel over Gloo, and the limit:
each block's own work on tensors that are there already, all blocks at once. All systems are up all the time, asleep but
for the one whose turn it is. In each round every system has one turn, in changing order; figures are medians over
rounds, ratios medians of the ratios within rounds.

Steps are timed in the steady state: without the first of a turn, and, for this runtime, without those in which its
pipeline drains at a turn's end. A step has ended when every block has applied it.

- *busy*: share of that time in which a block's compute thread did not wait; *computing*: forwards, updates and
  optimiser steps alone.
- *transport CPU per micro-batch* of a block: processor time of all threads of its process but the compute thread, and
  that thread's time outside computing and waiting (sending, publishing, taking messages, deciding), over a whole turn.
  The JSON line has the slowest block's.
- *bytes*: tensors alone, summed over all links; for DistributedDataParallel what a ring all-reduce sends. The JSON line
  has the broadcast's bytes with framing too.
- *peak*: ``VmHWM`` of the largest process, which has torch (and here Ray) in it.
- *other work*: processor time of the machine that went elsewhere, Ray's own processes included. Above some percent
  the machine was not quiet.

``--link-mbit`` puts each block on a host of its own (a network namespace with a Ray node in it) and limits its link in
both directions; the peers run on the same hosts. Systems whose names end in ``-bf16`` send activations, and the
pipelines their gradients too, as bfloat16. Between hosts this runtime uses mutual TLS, as it always does; Gloo is in
the clear. Fewer systems are measured then, unless ``--systems`` names others. Needs root and iproute2.

With more than 2 blocks those with the error at every layer are left out, unless ``--systems`` names them: all others fill
20 GB. A measurement in which a system of this runtime failed is not stored, and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting import write_result
from benchmarks.throughput.hosts import NoHostsError
from benchmarks.throughput.measure import Plan, measure
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.systems import OURS, all_names, overridden
from benchmarks.throughput.tables import tables

FAILED = 1
"""Exit code where a system of this runtime failed: such a measurement is not stored."""

CANNOT = 2
"""Exit code where links can't be limited on this machine."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default="mlp,cnn", help=f"some of {','.join(NETWORKS)} (%(default)s)")
    parser.add_argument("--blocks", default="2", help="numbers of blocks, such as 2,4 (%(default)s)")
    parser.add_argument("--link-mbit", type=int, help="limit of each link in Mbit/s, such as 1000, 100 or 25")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each system (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn (%(default)s)")
    parser.add_argument(
        "--systems",
        default="",
        help="some of the systems, by name; default: all, over links or with more than 2 blocks fewer",
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        help="also train to this test accuracy (0.95 for 95 %%) on the digits, and tell the time",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting on top of this runtime's specification, such as train.compile=true; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="end with the results as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the results in benchmarks/results")
    found = parser.parse_args(arguments)
    found.networks = found.networks.split(",")
    unknown = [name for name in found.networks if name not in NETWORKS]
    if unknown:
        parser.error(f"--networks: no {', '.join(unknown)}; expected some of {', '.join(NETWORKS)}")
    try:
        found.blocks = [int(number) for number in found.blocks.split(",")]
    except ValueError:
        parser.error(f"--blocks: {found.blocks!r}; expected numbers such as 2,4")
    if min(found.blocks) < 2:
        parser.error("--blocks: a pipeline needs at least 2")
    found.systems = tuple(name for name in found.systems.split(",") if name)
    try:
        overridden({}, found.overrides)
    except ValueError as error:
        parser.error(f"--set: {error}")
    known = {name for blocks in found.blocks for name in all_names(blocks, 4, coarse=True)}
    if wrong := [name for name in found.systems if name not in known]:
        parser.error(f"--systems: no {', '.join(wrong)}; expected some of {', '.join(sorted(known))}")
    return found


def main() -> None:
    """Measure as the command line says."""
    found = parse()
    # What was started, hosts above all, has to go with a measurement that is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    plan = Plan(
        found.rounds, 2, found.steps, found.link_mbit, found.systems, found.accuracy, tuple(found.overrides)
    )
    results = []
    status = 0
    for name in found.networks:
        for blocks in found.blocks:
            with tempfile.TemporaryDirectory(prefix="throughput-", dir="/tmp") as folder:
                try:
                    result = measure(name, blocks, plan, Path(folder), lambda line: print(line, flush=True))
                except NoHostsError as reason:
                    print(f"--link-mbit can't be used here: {reason}", file=sys.stderr)
                    sys.exit(CANNOT)
            print(f"\n{tables(result)}\n", flush=True)
            if lost := [one for one in result["not_measured"] if one.startswith(OURS)]:
                kept = "; nothing was stored" if found.write else ""
                print(f"could not be measured to the end: {', '.join(lost)}{kept}", file=sys.stderr)
                status = FAILED
            elif found.write:
                suffix = "" if plan.mbit is None else f"-{plan.mbit}"
                write_result(f"throughput-{name}-{blocks}{suffix}", result)
            results.append(result)
    if found.json:
        line = [{key: value for key, value in result.items() if key != "rounds"} for result in results]
        print(json.dumps(line[0] if len(line) == 1 else line[0] | {"others": line[1:]}))
    sys.exit(status)


if __name__ == "__main__":
    main()
