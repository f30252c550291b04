"""Run the paper's claims: ``python -m benchmarks.claims [C1 … C8 GAP …] [--seeds N] [--budget MINUTES] [--json] …``.

Every claim is run, stored in ``benchmarks/results``, drawn into ``docs/figures`` and judged; then ``docs/results.md``
is made anew from everything that is stored. ``--page`` alone only does the latter and redraws the figures. With
``--budget`` or ``--epochs`` it is a try, which is judged, but takes the place of nothing that is stored.

Training runs that finished are kept in ``runs/claims``, or the file that ``--runs`` names: a benchmark that was stopped
goes on where it was, and claims that share a network train it once. ``--fresh`` makes them again, as is needed after a
change of a rule; ``--processes`` lets several share them. ``benchmarks/results/runs.jsonl`` has those of long
results, which are made in pieces: name it to go on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from benchmarks.claims.claim import MODULES, RunSettings, checked_names, load
from benchmarks.claims.options import add_run_options, run_settings
from benchmarks.claims.page import check_page, write_page
from benchmarks.claims.storing import Places, measure, store
from lowdimfa.errors import InputError
from lowdimfa.network import computing_threads


def main(arguments: Sequence[str] | None = None, places: Places = Places()) -> int:  # noqa: B008 (frozen)
    """Run what the command line asks for, and return the exit code: 2 for input that can't be used."""
    asked = _parser(places).parse_args(arguments)
    try:
        if asked.page or asked.check:
            return _page(asked, places)
        settings = _settings(asked)
        with computing_threads(settings.threads):
            return _run(checked_names(asked.claims), settings, asked.json, places)
    except InputError as error:
        print(f"benchmarks.claims: {error.message}", file=sys.stderr)
        return error.exit_code


def _run(names: Sequence[str], settings: RunSettings, as_json: bool, places: Places) -> int:
    claims = [load(name) for name in names]
    lines = {}
    for claim in claims:
        result = measure(claim, settings)
        if not settings.is_try:
            store(result, places)
        verdict, reason = claim.judge(result)
        print(
            f"\n{claim.name}: {claim.title}\n\n{claim.tables(result)}\n\n{verdict}: {reason}\n"
            f"({result['seconds']:.0f} s on {result['environment']['device']})",
            flush=True,
        )
        lines[claim.name] = {**result, "verdict": verdict, "reason": reason}
    if settings.is_try:
        print("\nA try, by --budget or --epochs: it isn't stored.")
    else:
        write_page(places)
    if as_json:
        print(json.dumps(lines))
    return 0


def _page(asked: argparse.Namespace, places: Places) -> int:
    if asked.claims:
        raise InputError("--page" if asked.page else "--check", "claims to run", "one or the other")
    if asked.check:
        return check_page(places)
    write_page(places, figures=True)
    return 0


def _settings(asked: argparse.Namespace) -> RunSettings:
    if asked.epochs is not None and asked.epochs < 1:
        raise InputError("--epochs", str(asked.epochs), "at least 1")
    if asked.budget is not None and not 0 < asked.budget < float("inf"):
        raise InputError("--budget", f"{asked.budget:g}", "minutes, a number above 0")
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "cuda", "cpu or auto on a machine without a GPU that torch can use")
    use_gpu = asked.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    return run_settings(
        asked, budget_minutes=asked.budget, epochs=asked.epochs, core=asked.core, device=device
    )


def _parser(places: Places) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("claims", nargs="*", help=f"some of {', '.join(MODULES)} (default: all)")
    parser.add_argument(
        "--budget",
        type=float,
        help="minutes of one core for each claim, by fewer samples or more epochs, for a try that is not stored "
        "(default: its own)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="of C2 to C5, for a try that is not stored (default: their own, or what the budget has)",
    )
    parser.add_argument(
        "--core",
        action="store_true",
        help="of C2, C4 and C5 only the methods that their targets name, on their first network; of C3 four networks, "
        "and the second generation",
    )
    add_run_options(parser, places)
    parser.add_argument(
        "--json", action="store_true", help="end with the results by claim, as one line of JSON"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)")
    parser.add_argument(
        "--page",
        action="store_true",
        help="only make docs/results.md and the figures anew from what is stored",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only say whether docs/results.md is what the stored results give",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
