"""The part of a specification's section ``model`` that says with which weights a network begins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lowdimfa.services.spec.section import Section

Patterns = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(json_schema_extra={"expected": "a list of names or patterns of names"}),
]


class WeightsSection(Section):
    """Weights with which a network begins, not all of them in the files or not all that is there."""

    path: str = Field(min_length=1, description="A safetensors file, or a folder with some.")
    missing: Patterns = Field(
        [],
        description="What is not taken from the files, whether they have it or not, and begins as the factory makes it: "
        "names in the plain model, or patterns of them such as `head.*`.",
    )
    unexpected: Patterns = Field(
        [],
        description="What the files may have beside the model's: names in the files, or patterns of them.",
    )
