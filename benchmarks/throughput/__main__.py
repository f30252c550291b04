"""How fast blocks with a broadcast error train, side by side with training that uses gradients.

``python -m benchmarks.throughput`` trains the same networks on the same data with the same threads per process: this
runtime (``lowdimfa-s1-whole`` without micro-batches, which it needs only where nothing may be stale;
``lowdimfa-s1-layers`` with the error at every layer of a block, so that no block has a backward pass), and the systems
that the list at the end names, with what each is allowed. All systems are up all the time, asleep but for the one
whose turn it is. In each round every system has one turn, in changing order; figures are medians over rounds, ratios
medians of the ratios within rounds.

Steps are timed in the steady state: without the first of a turn, and, for this runtime, without those in which its
pipeline drains at a turn's end. A step has ended when every block has applied it.

- *busy*: share of that time in which a block's compute thread did not wait; *computing*: forwards, updates and
  optimiser steps alone.
- *CPU per part of a batch*, of all processes: of as many parts as a pipeline cuts a batch into, for all systems alike.
- *transport CPU* of a block: processor time of all threads of its process but the compute thread, and that thread's time
  outside computing and waiting (sending, publishing, taking messages, deciding), over a whole turn, for such a part.
  The JSON line has the slowest block's.
- *bytes*: tensors alone, as they are packed, summed over all links and counted where they are sent; for all-reduces
  what a ring sends of the tensors that it was given. The JSON line has the broadcast's bytes with framing too.
- *peak*: ``VmHWM`` of the largest process, which has torch (and here Ray) in it.
- *other work*: processor time of the machine that went elsewhere, Ray's own processes included. Above some percent
  the machine was not quiet.

A turn of ``diloco`` is whole rounds up to an outer step, however many steps are asked for, and ``2bw`` is never emptied.

``--link-mbit`` and ``--latency-ms`` put each block on a host of its own (a network namespace with a Ray node in it),
limit its link in both directions, and let everything take longer from one host to another (a relay in user space; one
way, a round trip twice that); the peers run on the same hosts. Between hosts this runtime uses mutual TLS, as it
always does; Gloo is in the clear. Needs root and iproute2.

``--accuracy`` and ``--perplexity`` train to a score on real data in the end: the digits, or Shakespeare in tokens,
which ``lowdimfa data tokens shakespeare --vocabulary 2048 --out ~/.cache/lowdimfa/data/shakespeare-2048`` makes. The
systems take turns. The time has the filling and draining of this runtime's pipeline for each look at the test split; a
second one leaves them out.

With more than 2 blocks those with the error at every layer are left out, and with 8 all but the likely best, unless
``--systems`` names them. A measurement in which a system of this runtime failed is not stored, and ends with 1.
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
from benchmarks.throughput.measure import Plan, command, measure
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.registry import table
from benchmarks.throughput.systems import OURS, all_names, is_known, overridden
from benchmarks.throughput.tables import tables
from lowdimfa.errors import InputError

FAILED = 1
"""Exit code where a system of this runtime failed: such a measurement is not stored."""

CANNOT = 2
"""Exit code where links can't be limited on this machine, as for what is asked for and can't be."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=f"{__doc__}\nSystems:\n\n{table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default="mlp,cnn", help=f"some of {','.join(NETWORKS)} (%(default)s)")
    parser.add_argument("--blocks", default="2", help="numbers of blocks, such as 2,4 (%(default)s)")
    parser.add_argument("--link-mbit", type=int, help="limit of each link in Mbit/s, such as 1000, 100 or 25")
    parser.add_argument(
        "--latency-ms",
        type=float,
        default=0.0,
        help="how much longer anything takes from host to host, such as 50",
    )
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
        "--perplexity",
        type=float,
        help="also train the language model to this test perplexity, and tell the time",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting on top of this runtime's specification, such as train.compile=true; may be repeated; those of "
        "the model, such as model.blocks=['3'], are for pipelines of so many stages too",
    )
    parser.add_argument("--json", action="store_true", help="end with the results as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the results in benchmarks/results")
    return _checked(parser, parser.parse_args(arguments))


def _checked(parser: argparse.ArgumentParser, found: argparse.Namespace) -> argparse.Namespace:
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
    known = {name for blocks in found.blocks for name in all_names(blocks, max(4, blocks))}
    wrong = [
        name
        for name in found.systems
        if not any(is_known(name, number, max(4, number)) for number in found.blocks)
    ]
    if wrong:
        parser.error(f"--systems: no {', '.join(wrong)}; expected some of {', '.join(sorted(known))}")
    if found.latency_ms < 0:
        parser.error(f"--latency-ms: {found.latency_ms:g}; expected 0 or more")
    return found


def main() -> None:
    """Measure as the command line says."""
    found = parse()
    # What was started, hosts above all, has to go with a measurement that is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    plan = Plan(
        found.rounds,
        steps=found.steps,
        mbit=found.link_mbit,
        systems=found.systems,
        accuracy=found.accuracy,
        perplexity=found.perplexity,
        latency_ms=found.latency_ms,
        overrides=tuple(found.overrides),
    )
    results = []
    status = 0
    for name in found.networks:
        for blocks in found.blocks:
            with tempfile.TemporaryDirectory(prefix="throughput-", dir="/tmp") as folder:
                try:
                    measured = measure(
                        NETWORKS[name], blocks, plan, Path(folder), lambda line: print(line, flush=True)
                    )
                except NoHostsError as reason:
                    print(f"links can't be limited here: {reason}", file=sys.stderr)
                    sys.exit(CANNOT)
                except InputError as error:
                    print(f"benchmarks.throughput: {error.message}", file=sys.stderr)
                    sys.exit(error.exit_code)
            about = {"benchmark": "throughput", "network": name, "command": command(name, blocks, plan)}
            result = about | measured
            print(f"\n{tables(result)}\n", flush=True)
            races = result.get("time_to_target") or {}
            failed = {*result["not_measured"], *(one for one, race in races.items() if "failure" in race)}
            if lost := sorted(one for one in failed if one.startswith(OURS)):
                kept = "; nothing was stored" if found.write else ""
                print(f"could not be measured to the end: {', '.join(lost)}{kept}", file=sys.stderr)
                status = FAILED
            elif found.write:
                write_result(f"throughput-{name}-{blocks}{plan.suffix}", result)
            results.append(result)
    if found.json:
        line = [{key: value for key, value in result.items() if key != "rounds"} for result in results]
        print(json.dumps(line[0] if len(line) == 1 else line[0] | {"others": line[1:]}))
    sys.exit(status)


if __name__ == "__main__":
    main()
