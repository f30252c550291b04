"""What a stream may bring, checked before memory is taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch

from lowdimfa.errors import ProtocolError
from lowdimfa.formats import Format, nbytes
from lowdimfa.sending import sent_type
from lowdimfa.services.rpc.tensors import dtype_code, dtype_name, dtype_of
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.values import TensorType

WireType = tuple[int, tuple[int, ...]]
"""Code of an element type, and a shape."""

_ERRORS = {pb.KIND_ERROR, pb.KIND_PROBE}


class Limit(Protocol):
    """What a stream may bring."""

    @property
    def nbytes(self) -> int | None:
        """Most bytes of one message, or None where only its type is known."""

    def check(self, kind: int, tensors: Sequence[WireType]) -> None:
        """Raise `ProtocolError` for what is not to come."""


class SampleLimit(NamedTuple):
    """What a receiver of activations or gradients accepts.

    Attributes
    ----------
    types
        Of one sample's tensors.
    max_samples
        Most samples in a message.
    forms
        In which each of them travels, None for its own; empty if all do.
    """

    types: tuple[TensorType, ...]
    max_samples: int
    forms: tuple[Format | None, ...] = ()

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: torch.dtype, max_samples: int) -> Self:
        """Return the limit for one tensor."""
        return cls((TensorType(shape, dtype),), max_samples)

    @property
    def nbytes(self) -> int:
        """Most bytes of one message."""
        return 2 * sum(map(self._largest, self.types, self._own_forms))

    @property
    def _own_forms(self) -> tuple[Format | None, ...]:
        return self.forms or (None,) * len(self.types)

    def _largest(self, kind: TensorType, form: Format | None) -> int:
        if form is None or not form.takes(kind.dtype):
            return self.max_samples * nbytes(kind)
        return form.largest((self.max_samples, *kind.shape))

    def check(self, kind: int, tensors: Sequence[WireType]) -> None:
        """Refuse other tensors than those of the expected types, once, or twice alike.

        Raises
        ------
        ProtocolError
            They are not.
        """
        if kind in _ERRORS:
            raise ProtocolError("an error, which only the head sends, and to all blocks")
        own = len(self.types)
        if len(tensors) not in (own, 2 * own) or list(tensors[own:]) not in ([], list(tensors[:own])):
            many = "one tensor, or two" if own == 1 else f"{own} tensors, or twice as many"
            raise ProtocolError(f"an activation has {many} of equal type and shape")
        samples = tensors[0][1][:1]
        for (code, shape), expected, form in zip(tensors, self.types, self._own_forms, strict=False):
            dtype = dtype_of(code)
            known = bool(samples) and 0 <= samples[0] <= self.max_samples
            if not known or (shape, dtype) != sent_type(form, expected, samples[0]):
                raise ProtocolError(
                    f"{dtype_name(dtype)} of shape {list(shape)}; expected {expected} after a batch of at most "
                    f"{self.max_samples}" + ("" if form is None else f", as train.activations: {form}")
                )


class ErrorLimit(NamedTuple):
    """What a subscriber accepts: errors of any number of samples, maybe with the ``P`` of float32 that made them.

    Attributes
    ----------
    error_dim
        Numbers of an error.
    source_width
        Numbers that ``P`` makes these of; None where no ``P`` is to come.
    dtype
        Of the errors.
    """

    error_dim: int
    source_width: int | None = None
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> None:
        """Their number of samples, and so of bytes, is not agreed upon."""

    def check(self, kind: int, tensors: Sequence[WireType]) -> None:
        """Refuse what is no error of the right type and error dimension.

        Raises
        ------
        ProtocolError
            It is not.
        """
        most = 2 if kind == pb.KIND_ERROR and self.source_width is not None else 1
        if kind not in _ERRORS or not 1 <= len(tensors) <= most:
            raise ProtocolError(f"{len(tensors)} tensors of kind {kind}; one of an error was expected")
        dtype, shape = dtype_of(tensors[0][0]), tensors[0][1]
        if tensors[1:] and tensors[1] != (dtype_code(torch.float32), (self.error_dim, self.source_width)):
            raise ProtocolError(
                f"the error comes with {list(tensors[1][1])}; a projection of shape "
                f"{[self.error_dim, self.source_width]} and of float32 was expected"
            )
        if dtype != self.dtype:
            raise ProtocolError(f"its type is {dtype_name(dtype)}; {dtype_name(self.dtype)} was expected")
        if len(shape) < 2 or shape[-1] != self.error_dim:
            raise ProtocolError(f"its shape is {list(shape)}; (samples, …, {self.error_dim}) was expected")
