"""What of a block's output travels, and what of it arrives.

Packed are the floating-point tensors that layers with weights have made, at which the error enters: a mask that goes
beside them in a named set may be infinite, and means what it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.formats import Format, format_of
from lowdimfa.values import Ports, TensorType, Value, mapped, named, put_together


def format_between(training: TrainingConfig, feedback: FeedbackConfig) -> Format | None:
    """Return the format in which the blocks of a network send activations; those of the baselines send none."""
    return format_of(training.activations) if feedback.form == "broadcast" else None


def sent_type(form: Format | None, kind: TensorType, samples: int) -> TensorType:
    """Return the whole type of what travels of a tensor, of which a plan has the type of one sample."""
    whole = kind._replace(shape=(samples, *kind.shape))
    return whole if form is None or not form.takes(kind.dtype) else form.packed(whole.shape)


def leaving(form: Format, tapped: Collection[str], output: Value) -> Value:
    """Return what travels of an output, given the names of the tensors at which the error enters."""
    tensors = [
        form.pack(each) if name in tapped and form.takes(each.dtype) else each
        for name, each in named(output).items()
    ]
    return put_together(list(named(output)), tensors)


def arriving(form: Format | None, kinds: Mapping[str, TensorType], value: Value) -> Value:
    """Return what a block's layers take, given the planned types; what was not packed stays."""
    if form is None:
        return value
    tensors = [_unpacked(form, kinds.get(name), each) for name, each in named(value).items()]
    return put_together(list(named(value)), tensors)


def straight_through(form: Format | None, ports: Ports, output: Value) -> Value:
    """Return an output as the next block's layers take it, with a gradient as if it had travelled as it is."""
    if form is None:
        return output
    sent = leaving(form, ports.tapped, mapped(output, Tensor.detach))
    found = named(arriving(form, ports.leaves, sent))
    tensors = [
        each + (found[name] - each.detach()) if name in ports.tapped and form.takes(each.dtype) else each
        for name, each in named(output).items()
    ]
    return put_together(list(named(output)), tensors)


def _unpacked(form: Format, kind: TensorType | None, tensor: Tensor) -> Tensor:
    if kind is None or not form.takes(kind.dtype):
        return tensor
    shape = (len(tensor), *kind.shape)
    packed = form.packed(shape) == (tuple(tensor.shape), tensor.dtype)
    return form.unpack(tensor, shape, kind.dtype) if packed else tensor
