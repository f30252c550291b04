"""What data say of themselves that a network of Hugging Face says too: names of classes, how pictures become inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowdimfa.data.base import Dataset
from lowdimfa.errors import InputError
from lowdimfa.models.hf.layers import Part
from lowdimfa.services.run.network_plan import NetworkPlan

PREPROCESSOR = "preprocessor_config.json"
_SHOWN = 5


def described(dataset: Dataset) -> dict[str, Any]:
    """Return what an export has to know of the data, as plain data."""
    return {"classes": _classes(dataset), "images": dataset.images}


def check_classes(network: NetworkPlan, dataset: Dataset) -> None:
    """Compare the names of the data's classes with those of the network's labels.

    Raises
    ------
    InputError
        A class is a label of another number: predictions would be told by the wrong name.
    """
    labels, classes = _labels_and_classes(network, dataset)
    numbers = {_key(name): number for number, name in labels.items()}
    if all(numbers.get(_key(name), number) == number for number, name in enumerate(classes)):
        return
    order, own = [labels[number] for number in sorted(labels)], {_key(name): name for name in classes}
    again = (
        f"Let lowdimfa.data:table or image_folder number them so: data.args.classes: {[own[_key(one)] for one in order]}"
        if sorted(map(_key, order)) == sorted(own)
        else "Save the network once with the data's names: from_pretrained takes id2label, label2id and "
        "ignore_mismatched_sizes."
    )
    found = f"the labels {_numbered(order)} of the network, and the classes {_numbered(classes)} of the data"
    raise InputError("data.args.classes", found, "each class under one number", again)


def renamed(network: NetworkPlan, dataset: Dataset) -> str:
    """Return a notice where labels have names that none of the data's classes has; empty elsewhere."""
    labels, classes = _labels_and_classes(network, dataset)
    if all(_agrees(labels, number, name) for number, name in enumerate(classes)):
        return ""
    order = [labels[number] for number in sorted(labels)]
    return (
        f"the network's labels are {_numbered(order)}, and the data's classes {_numbered(classes)}: an export calls them "
        "as the data do"
    )


def name_labels(config: Any, classes: Sequence[str] | None) -> None:
    """Let a configuration name its labels as the data name their classes, where its own names are no such."""
    if not classes or len(classes) > len(config.id2label):
        return
    labels = _own_labels(config)
    if labels and all(_agrees(labels, number, name) for number, name in enumerate(classes)):
        return
    names = {**config.id2label, **dict(enumerate(classes))}
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}


def _labels_and_classes(network: NetworkPlan, dataset: Dataset) -> tuple[dict[int, str], list[str]]:
    """Return the names of a network's labels and of the data's classes; none where one of them has no names."""
    head, classes = network.blocks[-1].layers[-1].module, _classes(dataset)
    labels = _own_labels(head.config) if isinstance(head, Part) and head.labels else None
    return ({}, []) if labels is None or classes is None else (labels, classes)


def _agrees(labels: Mapping[int, str], number: int, name: str) -> bool:
    return _key(labels.get(number, "")) == _key(name)


def write_preprocessor(images: Mapping[str, Any] | None, folder: Path) -> list[str]:
    """Say how pictures became inputs, in place of how those of the network's folder did; return what is to be told."""
    if images is None:
        return []
    file = folder / PREPROCESSOR
    before = file.is_file()
    file.write_text(json.dumps(images, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [f"{PREPROCESSOR} has size, mean and std of the data, by which it was trained"] if before else []


def _classes(dataset: Dataset) -> list[str] | None:
    return None if dataset.classes is None else list(map(str, dataset.classes))


def _own_labels(config: Any) -> dict[int, str] | None:
    """Return the names of labels, or None where they are the package's own."""
    labels = {int(number): str(name) for number, name in (getattr(config, "id2label", None) or {}).items()}
    usual = all(name == f"LABEL_{number}" for number, name in labels.items())
    return None if usual else labels


def _key(name: str) -> str:
    """Return what names have in common that are written as words, as names of folders or in capitals."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _numbered(names: Sequence[str]) -> str:
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN]))
    return shown + (", …" if len(names) > _SHOWN else "")
