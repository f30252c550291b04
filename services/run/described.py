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
        Both have names, and a number has another one in the other: predictions would be told by the wrong name.
    """
    head, classes = network.blocks[-1].layers[-1].module, _classes(dataset)
    if classes is None or not isinstance(head, Part) or not head.labels:
        return
    labels = _own_labels(head.config)
    if labels is None or all(
        labels.get(number, "").casefold() == name.casefold() for number, name in enumerate(classes)
    ):
        return
    order = [labels[number] for number in sorted(labels)]
    again = (
        f"Let lowdimfa.data:table or image_folder number them so: data.args.classes: {order}"
        if sorted(order) == sorted(classes)
        else "If they are other classes, save the network once with the data's names: from_pretrained takes id2label, "
        "label2id and ignore_mismatched_sizes."
    )
    found = f"the labels {_numbered(order)} of the network, and the classes {_numbered(classes)} of the data"
    raise InputError("data.args.classes", found, "each class under one number", again)


def name_labels(config: Any, classes: Sequence[str] | None) -> None:
    """Let a configuration name its labels as the data name their classes, where it has names by number alone."""
    if not classes or _own_labels(config) is not None or len(classes) > len(config.id2label):
        return
    names = {**config.id2label, **dict(enumerate(classes))}
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}


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


def _numbered(names: Sequence[str]) -> str:
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN]))
    return shown + (", …" if len(names) > _SHOWN else "")
