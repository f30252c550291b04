"""Data sets: their interface, factories for specifications, and how to fetch them.

What it has is loaded when it is first used: to list and fetch data sets takes no torch.
"""

from typing import TYPE_CHECKING

from lowdimfa.on_demand import on_demand

if TYPE_CHECKING:
    from lowdimfa.data.base import BatchOrder, Dataset, Task, as_dataset
    from lowdimfa.data.fetching import fetch
    from lowdimfa.data.images import cifar10, digits, fashion_mnist, mnist
    from lowdimfa.data.items import ItemSplit
    from lowdimfa.data.reading import Reader
    from lowdimfa.data.sources import SOURCES, Source
    from lowdimfa.data.splits import DigestedSplit, Split, SubSplit, TensorSplit
    from lowdimfa.data.synthetic import teacher
    from lowdimfa.data.tabular import diamonds
    from lowdimfa.data.text import SHAKESPEARE_VOCABULARY, shakespeare
    from lowdimfa.data.token_splits import tokens

__all__ = [
    "SHAKESPEARE_VOCABULARY",
    "SOURCES",
    "BatchOrder",
    "Dataset",
    "DigestedSplit",
    "ItemSplit",
    "Reader",
    "Source",
    "Split",
    "SubSplit",
    "Task",
    "TensorSplit",
    "as_dataset",
    "cifar10",
    "diamonds",
    "digits",
    "fashion_mnist",
    "fetch",
    "mnist",
    "shakespeare",
    "teacher",
    "tokens",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "base": "BatchOrder Dataset Task as_dataset",
        "fetching": "fetch",
        "images": "cifar10 digits fashion_mnist mnist",
        "items": "ItemSplit",
        "reading": "Reader",
        "sources": "SOURCES Source",
        "splits": "DigestedSplit Split SubSplit TensorSplit",
        "synthetic": "teacher",
        "tabular": "diamonds",
        "text": "SHAKESPEARE_VOCABULARY shakespeare",
        "token_splits": "tokens",
    },
)
