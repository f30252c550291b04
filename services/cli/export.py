"""``lowdimfa export``: the plain model's weights, for use without this package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.services.cli.options import BestOption, RunDirArgument, expanded
from lowdimfa.services.run.mirror import DESCRIPTION, fetch
from lowdimfa.services.trainer.run_dir import read_plan, read_run


class ExportFormat(StrEnum):
    """What is written."""

    state_dict = "state-dict"
    hugging_face = "hugging-face"


def export(
    run_dir: RunDirArgument,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE.safetensors|DIR",
            parser=expanded,
            help="Where to write the state dict, or the folder.",
        ),
    ],
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="A state dict, or a folder that Hugging Face's from_pretrained loads."),
    ] = ExportFormat.state_dict,
    best: BestOption = False,
    average: Annotated[
        bool,
        typer.Option("--average", help="Take the moving average of weights, of a run with train.average."),
    ] = False,
) -> None:
    """Write the plain model's weights of a run's newest checkpoint, or of the best one."""
    from lowdimfa.services.run.best import load_best
    from lowdimfa.services.run.checkpoint import CheckpointStore
    from lowdimfa.services.run.manifest import export_file, left_out

    folder = fetch(run_dir, DESCRIPTION.__contains__)
    specification = read_run(folder)
    store = CheckpointStore(run_dir)
    manifest = load_best(store) if best else store.load(None)
    done = f"step {manifest.step:,} of {run_dir} written to {output}"
    if form is ExportFormat.hugging_face:
        from lowdimfa.services.run.pretrained import export_folder
        from lowdimfa.services.run.user_code import UserCode

        UserCode(read_plan(folder).get("user_code")).install()
        files, notices = export_folder(specification, manifest, output, average)
        print(f"{done}: {', '.join(files)}")
        print("".join(f"{notice}\n" for notice in notices), end="")
        return
    export_file(manifest, output, average)
    print(done)
    if names := left_out(manifest):
        print(
            f"left out, since such a file holds tensors alone: {', '.join(names)}; load it with strict=False"
        )
