"""Data sets: their interface, factories for specifications, and how to fetch them.

What it has is loaded when it is first used: to list and fetch data sets takes no torch.
"""

from typing import TYPE_CHECKING

from lowdimfa.on_demand import on_demand

if TYPE_CHECKING:
    from lowdimfa.data.array_files import numpy_files
    from lowdimfa.data.base import BatchOrder, Dataset, Task, as_dataset
    from lowdimfa.data.fetching import fetch
    from lowdimfa.data.image_folders import image_folder
    from lowdimfa.data.images import cifar10, digits, fashion_mnist, mnist
    from lowdimfa.data.items import ItemSplit
    from lowdimfa.data.reading import Reader
    from lowdimfa.data.sources import SOURCES, Source
    from lowdimfa.data.splits import DigestedSplit, Split, SubSplit, TensorSplit
    from lowdimfa.data.streams import StreamSplit
    from lowdimfa.data.synthetic import teacher
    from lowdimfa.data.tables import table
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
    "StreamSplit",
    "SubSplit",
    "Task",
    "TensorSplit",
    "as_dataset",
    "cifar10",
    "diamonds",
    "digits",
    "fashion_mnist",
    "fetch",
    "image_folder",
    "mnist",
    "numpy_files",
    "shakespeare",
    "table",
    "teacher",
    "tokens",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "base": "BatchOrder Dataset Task as_dataset",
        "fetching": "fetch",
        "image_folders": "image_folder",
        "images": "cifar10 digits fashion_mnist mnist",
        "items": "ItemSplit",
        "array_files": "numpy_files",
        "reading": "Reader",
        "sources": "SOURCES Source",
        "splits": "DigestedSplit Split SubSplit TensorSplit",
        "streams": "StreamSplit",
        "synthetic": "teacher",
        "tables": "table",
        "tabular": "diamonds",
        "text": "SHAKESPEARE_VOCABULARY shakespeare",
        "token_splits": "tokens",
    },
)
