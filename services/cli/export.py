"""``lowdimfa export``: the plain model's weights, for use without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdimfa.services.cli.options import RunDirArgument, expanded
from lowdimfa.services.trainer.run_dir import read_run


def export(
    run_dir: RunDirArgument,
    output: Annotated[
        Path, typer.Option(metavar="FILE.safetensors", parser=expanded, help="Where to write the state dict.")
    ],
) -> None:
    """Write the plain model's state dict of a run's newest checkpoint."""
    from lowdimfa.services.run.checkpoint import CheckpointStore
    from lowdimfa.services.run.manifest import export_file, left_out

    read_run(run_dir)
    manifest = CheckpointStore(run_dir).load(None)
    export_file(manifest, output)
    print(f"step {manifest.step:,} of {run_dir} written to {output}")
    if names := left_out(manifest):
        print(
            f"left out, since such a file holds tensors alone: {', '.join(names)}; load it with strict=False"
        )
