"""The section ``data`` of a specification."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lowdimfa.services.spec.section import Args, Factory, Section


class DataSection(Section):
    """What the model is trained on."""

    factory: Factory = Field(
        description="What makes the data: called with `args`, returns a `lowdimfa.data.Dataset`, four "
        "tensors or NumPy arrays (training inputs and targets, test inputs and targets), or a training and a test "
        "`torch.utils.data.Dataset`, map-style or iterable; [data.md](data.md) has the details."
    )
    args: Args = Field({}, description="Keyword arguments of the factory.")
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the training samples that is held out of training and evaluated in place of the test "
        "split: the last in the order of the data set, so shuffle sorted data in the factory. Choose hyperparameters on "
        "this, never on the test split.",
    )
    last_batch: Literal["drop", "keep"] = Field(
        "drop",
        description="What becomes of the training samples of an epoch that don't fill a batch. `drop`: they are left out "
        "of this epoch, others of the next. `keep`: they are a smaller batch, whose loss is the mean over what it has.",
    )

    collate: Factory | None = Field(
        None,
        description="What puts samples together: a function of a list of items that returns a batch, `(input, target)`, "
        "or a mapping with `labels`, as `collate_fn` of torch's `DataLoader`. It pads items of unequal shapes to one "
        "length. Items of data that have none, such as tensors, files and text, are `(input, target)`.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Processes that read ahead for each process that reads (first block, head, blocks with inputs by "
        "name), as `num_workers` of torch's `DataLoader`; the samples stay the same. 0 reads where they are used.",
    )
    prefetch: int = Field(
        2,
        ge=1,
        description="Micro-batches that each of `data.workers` may have ready or in work, as `prefetch_factor`.",
    )

    @property
    def evaluated_split(self) -> Literal["test", "validation"]:
        """Of which samples evaluations are: the test split's, or training samples that are held out."""
        return "validation" if self.validation else "test"
