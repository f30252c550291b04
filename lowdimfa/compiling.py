"""A block's layers under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lowdimfa.errors import InputError
from lowdimfa.values import Value


def compiled(layers: nn.Module, index: int) -> Callable[..., Value]:
    """Return what runs the layers of block ``index`` compiled; the first call compiles.

    Raises
    ------
    InputError
        By the first call: the layers can't be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second, which others need not pay

    call = torch.compile(layers, dynamic=False)

    def run(*inputs: Any) -> Value:
        try:
            return call(*inputs)  # type: ignore[no-any-return]
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                "train.compile",
                f"true, and block {index} can't be compiled here ({reason})",
                "layers that torch.compile takes, and a C++ compiler on every node",
                "Set it to false.",
            ) from error

    return run
