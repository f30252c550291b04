"""``lowdimfa plan --tune``: try settings on the cluster at hand, and write the specification that was fastest."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lowdimfa.errors import InputError, ResourceError, StoppedError
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.words import clock, size
from lowdimfa.services.spec.dialect import write_inline
from lowdimfa.services.spec.load import parse_specification, parse_text, text_of
from lowdimfa.services.spec.rewriting import rewritten
from lowdimfa.services.spec.section import nearest
from lowdimfa.services.trainer.signals import graceful_signals

if TYPE_CHECKING:
    from lowdimfa.services.lab.tuning.search import Tried
    from lowdimfa.services.lab.tuning.space import Space
    from lowdimfa.services.lab.tuning.tune import Tuned
    from lowdimfa.services.run.plan import RunPlan
    from lowdimfa.services.spec import Specification
    from lowdimfa.services.trainer.api import DecoupledTrainer

LEAST_SECONDS, MOST_SECONDS = 0.3, 3.0
"""Of training in a segment: a hundredth of the time that there is, within these."""

_STOPPING = "stopping: finishing the step; again to stop at once"
_HEADER = ("setting", "samples/s", "±", "of default", "predicted", "busy", "memory", "segments")


def tune_command(
    spec: Path,
    overrides: Sequence[str],
    address: str | None,
    minutes: float,
    allow: str | None,
    keep: str | None,
    output: Path | None,
) -> dict[str, Any]:
    """Search, write what was found, and return it as an event."""
    from lowdimfa.services.lab.tuning.space import ALLOWED, FREE, Space
    from lowdimfa.services.trainer.api import DecoupledTrainer

    allowed, kept = (
        _names("--allow", allow, ALLOWED),
        _names("--keep", keep, FREE),
    )
    began = time.monotonic()
    if not math.isfinite(60 * minutes):
        raise InputError("--minutes", f"{minutes}", "some minutes")
    text = text_of(spec)
    target = output or spec.with_name(f"{spec.stem}.tuned{spec.suffix}")
    _require_free(target)
    trainer = DecoupledTrainer(spec, overrides=overrides, address=address)
    _changed(text, spec, overrides, {}, trainer.specification)
    plan = trainer.plan()
    _require_modules_found(target, spec)
    _require_tunable(plan)
    with _cluster(trainer, address) as cluster:
        space = Space.around(plan, allowed, kept, **cluster)
        tuned = _searched(trainer, plan, space, began, 60 * minutes)
    chosen = tuned.chosen.changes
    if chosen:
        _write(target, _changed(text, spec, overrides, chosen, trainer.specification), chosen)
    return {
        "event": "tuned",
        **tuned.describe(),
        "left_out": space.left_out,
        "written": str(target) if chosen else None,
    }


def tuned_text(found: dict[str, Any], spec: Path) -> str:
    """Return what was found as a table and a sentence."""
    from lowdimfa.services.lab.tuning.space import ALLOWED

    rows = [row for row in found["settings"] if row["samples_per_second"] is not None]
    lines = [aligned([_HEADER, *map(_row, rows)]), ""]
    lines += [f"{_said(row['changes'])}: {row['failure']}" for row in found["settings"] if row["failure"]]
    lines += [
        f"{name} left as it is: {why}" + (f"; --allow {name} tries it" if name in ALLOWED else "")
        for name, why in found["left_out"].items()
    ]
    if found["untried"]:
        lines.append(
            f"{found['untried']} more settings were not tried: there was no time, or less was expected of them"
        )
    ratio, noise, pairs = found["ratio"], found["noise"], len(found["ratios"])
    by = f"{ratio:.2f} of the default's rate in {pairs} pairs in turns"
    if found["stopped"]:
        pass  # what has no end has no result
    elif found["written"]:
        lines.append(
            f"faster: {_said(found['chosen'])}, {by} (noise {noise:.2f}); written to {found['written']}"
        )
    elif not found["leader"]:
        lines.append(f"nothing was faster than the settings of {spec}: they stay")
    elif noise is None:
        lines.append(
            f"{_said(found['leader'])} looked faster, but there was no time to make sure: give more --minutes"
        )
    else:
        lines.append(
            f"{_said(found['leader'])}: {by}, no more than noise ({noise:.2f}); {spec} stays as it is"
        )
    return "\n".join(lines)


def _names(option: str, given: str | None, known: Sequence[str]) -> frozenset[str]:
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(option, repr(name), f"some of {','.join(known)}", nearest(name, known))
    return frozenset(names)


def _require_free(target: Path) -> None:
    """Refuse a file that can't be made, by making it: the search takes minutes."""
    option = f"--output {target}"
    try:
        target.open("x").close()
        target.unlink()
    except FileExistsError as error:
        hint = "Nothing is written over: remove it, or give another --output."
        raise InputError(option, "a file that is already there", "the name of a new one", hint) from error
    except OSError as error:
        if not target.parent.is_dir():
            raise InputError(option, "a folder that isn't there", "a file in one that is") from error
        reason = (error.strerror or str(error)).lower()
        raise InputError(option, f"a file that can't be written ({reason})", "one that can") from error


def _require_modules_found(target: Path, spec: Path) -> None:
    """Refuse another folder where the specification names modules that lie beside it."""
    here, there = spec.resolve().parent, target.resolve().parent
    names = {name for name in list(sys.modules) if "." not in name} - {"__main__", "lowdimfa"}
    own = sorted(name for name in names if _lies_in(here, sys.modules[name]))
    if own and here != there:
        found = f"a folder without what {spec} uses of its own ({', '.join(own)})"
        raise InputError(f"--output {target}", found, f"a file in {here}")


def _lies_in(folder: Path, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not file:
        return False
    path = Path(file)
    return (path.parent if path.stem != "__init__" else path.parent.parent).resolve() == folder


def _write(target: Path, text: str, chosen: Mapping[str, Any]) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        options = " ".join(
            f"--set {shlex.quote(f'{key}={write_inline(value)}')}" for key, value in chosen.items()
        )
        reason = (error.strerror or str(error)).lower()
        raise ResourceError(f"{target} can't be written ({reason}); what was faster: {options}") from error


def _changed(
    text: str, spec: Path, overrides: Sequence[str], chosen: Mapping[str, Any], default: Specification
) -> str:
    """Return the text with what was chosen; it is read as what was measured, or refused.

    A number of micro-batches that is left to the program may follow from what was chosen: then it is written out.
    """
    from lowdimfa.services.run.weights import located  # late: it imports torch

    wanted = parse_specification(default.model_dump(), str(spec), chosen)
    for pinned in ({}, {"train.microbatches": wanted.train.microbatches}):
        found = rewritten(text, str(spec), list(overrides), {**chosen, **pinned})
        if located(parse_text(found, str(spec))) == wanted:
            return found
    raise InputError(str(spec), "a text that changes, or can't be changed", "a file that stays as it is")


def _require_tunable(plan: RunPlan) -> None:
    from lowdimfa.services.lab.tuning.segments import least_steps
    from lowdimfa.services.spec.addresses import is_address

    specification = plan.specification
    if len(plan.network.blocks) == 1:
        expected = "at least 2, as one block alone sends nothing and waits for nobody"
        raise InputError("model.blocks", "1 with --tune", expected)
    if is_address(specification.run.storage):
        raise InputError(
            "run.storage",
            "an address of an object store",
            "a folder that all nodes share, for what segments leave until they are read",
            "Set it for the search: --set run.storage=runs",
        )
    steps, least = plan.network.training.total_steps, least_steps(specification)
    if steps < least:
        raise InputError("train.steps", f"{steps} with --tune", f"at least {least}, which a segment has")


@contextmanager
def _cluster(trainer: DecoupledTrainer, address: str | None) -> Iterator[dict[str, Any]]:
    """Connect to the cluster, or start one; give what there is of it."""
    import ray

    from lowdimfa.services.trainer import forks
    from lowdimfa.services.trainer.cluster import start_ray

    specification = trainer.specification
    placement, workers = specification.placement, specification.workers
    if address is None and not ray.is_initialized():
        forks.prepare()
    disconnect = start_ray(address, workers + 1, placement.cpus_per_block, specification.run.liveness_seconds)
    try:
        nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        here = len(os.sched_getaffinity(0))
        room = [
            (here if address is None and kind == "CPU" else free.get(kind, 0)) // each
            for kind, each in (("CPU", placement.cpus_per_block), ("GPU", placement.gpus_per_block))
            if each
        ]
        one = len(nodes) == 1
        cores = here if address is None else int(min(nodes))
        threads = 1 if placement.gpus_per_block else cores if one else max(1, int(placement.cpus_per_block))
        spare = max(0, int(min(room, default=workers)) - workers)
        yield {
            "spare": spare,
            "threads": threads,
            "cores": cores if one and not placement.gpus_per_block else None,
        }
    finally:
        disconnect()


def _searched(trainer: DecoupledTrainer, plan: RunPlan, space: Space, began: float, seconds: float) -> Tuned:
    from lowdimfa.services.lab.tuning.search import Search
    from lowdimfa.services.lab.tuning.segments import Segments
    from lowdimfa.services.lab.tuning.tune import tune
    from lowdimfa.services.trainer.run_dir import new_run_dir, reserved
    from lowdimfa.services.trainer.stopping import StopRequest

    stop, liveness = StopRequest(), trainer.specification.run.liveness_seconds
    each = min(max(seconds / 100, LEAST_SECONDS), MOST_SECONDS)

    def told(tried: Tried) -> None:
        rate = tried.segments[-1].samples_per_second
        at = f"{clock(time.monotonic() - began)} of {clock(seconds)}"
        print(f"{at}  {rate:,.0f} samples/s  {_said(tried.changes)}", file=sys.stderr)

    try:
        with (
            reserved(Path(new_run_dir(trainer.specification.run.storage, "tune"))) as folder,
            _emptied(folder),
            graceful_signals(stop.make, 4 * liveness, _STOPPING),
            Segments(
                plan.specification, plan.network.boundaries, folder, trainer.request.user_code, each, stop
            ) as segments,
        ):
            search = Search(segments.measure, time.monotonic, began + seconds, told, segments.rehearse)
            return tune(search, space, segments.found, lambda part: began + part * seconds)
    except KeyboardInterrupt:
        raise StoppedError("stopped: nothing was chosen, and nothing is left") from None


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)


def _said(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={write_inline(value)}" for key, value in changes.items()) or "as it is"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    def number(key: str, form: str) -> str:
        value = row[key]
        return "-" if value is None or not math.isfinite(value) else format(value, form)

    return (
        _said(row["changes"]),
        number("samples_per_second", ",.0f"),
        number("spread", ",.0f"),
        number("of_default", ".2f"),
        number("predicted", ",.0f"),
        number("busy", ".0%"),
        "-" if row["peak_bytes"] is None else size(row["peak_bytes"]),
        str(row["segments"]),
    )
