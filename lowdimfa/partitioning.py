"""Cut a plain PyTorch model into blocks of consecutive layers, without losing or changing any of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowdimfa.block_module import BlockModule
from lowdimfa.boundaries import BLOCKS_KEY, cuts_at, refuse_end, refuse_set, refuse_shared
from lowdimfa.captured import captor
from lowdimfa.cost import Balance, cuts_between
from lowdimfa.errors import InputError
from lowdimfa.layers import Layer, as_module, list_layers
from lowdimfa.losses import validate_tokens
from lowdimfa.trace import TracedLayer, trace
from lowdimfa.values import ONE, Inputs, Ports, TensorType, Types, entering, some_tensor

__all__ = ["BlockPlan", "Flow", "Layer", "as_module", "list_layers", "partition"]


class Flow(NamedTuple):
    """What a layer takes of the data, and puts out; `TracedLayer` has the attributes, here without the batch."""

    outputs: Types
    side: tuple[str, ...]
    learned: frozenset[str]
    largest: int
    moves: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockPlan:
    """One block of a partition.

    Attributes
    ----------
    index
        Position of the block, from 0.
    layers
        The block's layers, in order.
    inputs, outputs
        Shapes, without the batch, and types of what enters and leaves: of one tensor, or of a set by name. Nothing enters
        where the data's inputs have names.
    flows
        Of each layer.
    layer_shares
        Each layer's part of the cost of the whole model, from 0 to 1.
    parameters
        Number of values in parameters, learned and frozen ones.
    """

    index: int
    layers: tuple[Layer, ...]
    inputs: Types
    outputs: Types
    flows: tuple[Flow, ...]
    layer_shares: tuple[float, ...]
    parameters: int

    @property
    def name(self) -> str:
        """The name of the block's first layer."""
        return self.layers[0].name

    @property
    def side(self) -> tuple[str, ...]:
        """Names of the data's inputs that the block's layers take, beside what enters."""
        return tuple(sorted({name for flow in self.flows for name in flow.side}))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the one tensor that enters; a named set there is refused."""
        return self._one_shape(self.inputs, "takes")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the one tensor that leaves; a named set there is refused."""
        return self._one_shape(self.outputs, "puts out")

    def _one_shape(self, types: Types, does: str) -> tuple[int, ...]:
        if set(types) == {ONE}:
            return types[ONE].shape
        found = f"block {self.index} ({self.name}), which {does} {', '.join(map(repr, types)) or 'the data by name'}"
        raise InputError(BLOCKS_KEY, found, "one tensor there")

    @property
    def ports(self) -> Ports:
        """What enters and leaves, for who builds the block."""
        return Ports(self.inputs, self.outputs, self.side, self.tapped)

    @property
    def tapped(self) -> tuple[str, ...]:
        """Names of the tensors at which the error enters: what the block has made and can learn, else all."""
        floats = [name for name, kind in self.outputs.items() if kind.dtype.is_floating_point]
        made = {name for flow in self.flows for name in flow.learned}
        return tuple([name for name in floats if name in made] or floats or self.outputs)

    @property
    def cost_share(self) -> float:
        """The block's part of the cost of the whole model, from 0 to 1."""
        return sum(self.layer_shares)

    @property
    def learns(self) -> bool:
        """Whether any parameter of the block requires a gradient, as frozen ones don't."""
        return any(value.requires_grad for layer in self.layers for value in layer.module.parameters())

    @property
    def frozen(self) -> int:
        """Number of values in frozen parameters."""
        return sum(value.numel() for value in self.build().parameters() if not value.requires_grad)

    def build(self) -> BlockModule:
        """Return the block as a module; it shares the layers with the model."""
        return BlockModule(self.layers)

    @property
    def starts(self) -> list[int]:
        """Indexes of the layers at which an automatic cut of this block alone would let a block begin, 0 first."""
        return block_starts(list(self.layers), 1)

    def parts(self, starts: Sequence[int]) -> list[BlockPlan]:
        """Return the block cut at these layers, some of its `starts`, as blocks of their own that have its index."""
        return [
            replace(
                self,
                layers=self.layers[start:stop],
                inputs=self.flows[start - 1].outputs if start else self.inputs,
                outputs=self.flows[stop - 1].outputs,
                flows=self.flows[start:stop],
                layer_shares=self.layer_shares[start:stop],
            )
            for start, stop in pairwise([*starts, len(self.layers)])
        ]


def copies(plans: Sequence[BlockPlan]) -> list[BlockPlan]:
    """Return the same blocks with layers of their own.

    Raises
    ------
    ValueError
        A copy would compute with the original's parts, which a function holds, or have parameters that can't be trained,
        as one of TorchScript has. Others come from what can't be copied.
    """
    if captor([layer.module for plan in plans for layer in plan.layers]) is not None:
        raise ValueError("a function holds parts of the model")
    # A layer may keep what it computed with its graph, such as a map of attention, which torch refuses to copy.
    computed = [
        value
        for plan in plans
        for layer in plan.layers
        for module in layer.module.modules()
        for value in tree_leaves(vars(module))
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    made = deepcopy(list(plans), {id(value): value.detach().clone() for value in computed})
    modules = [layer.module for plan in made for layer in plan.layers]
    if not all(value.is_leaf for module in modules for value in module.parameters()):
        raise ValueError("the copy's parameters would be no leaves of autograd's graph")
    return made


def partition(
    model: object, blocks: int | Sequence[str], example: Inputs, balance: Balance = "flops"
) -> list[BlockPlan]:
    """Cut a model into blocks of consecutive layers.

    Parameters
    ----------
    model
        As `list_layers` accepts it. Neither it nor the global random state is changed.
    blocks
        The number of blocks: their costs are then made as equal as can be, with cuts only before layers that
        have parameters. Or the names of the layers at which the blocks after the first begin.
    example
        A batch of inputs on the model's device, shape ``(batch, …)``, maybe by name; two samples are enough.
    balance
        Cost that is shared out: ``flops`` (counted; the same in every process) or ``time`` (measured, with as many
        samples as the example has and torch's present number of threads).

    Returns
    -------
    list of BlockPlan
        The blocks in order; together they hold every layer once.

    Raises
    ------
    InputError
        The layers can't be listed or don't fit together, they leave out what the model does, there are
        fewer places to cut than asked for, a boundary is unknown, two blocks would share a tensor, or the embedding has
        no room for a token.
    """
    module = as_module(model)
    layers = list_layers(module)
    if (vocabulary := getattr(layers[0].module, "vocabulary", None)) is not None:
        validate_tokens(example, vocabulary)
    start_with = entering(example)
    traced = trace(module, layers, start_with, balance)
    cuts = (
        cuts_between([entry.cost for entry in traced], block_starts(layers, blocks), blocks)
        if isinstance(blocks, int)
        else cuts_at(layers, blocks)
    )
    total = sum(entry.cost for entry in traced)
    shares = [entry.cost / total for entry in traced]
    for stop in (*cuts, len(layers)):
        refuse_end(layers[stop - 1], traced[stop - 1], len(some_tensor(start_with)))
    plans = [
        _plan(index, layers[start:stop], traced[start:stop], shares[start:stop])
        for index, (start, stop) in enumerate(pairwise([0, *cuts, len(layers)]))
    ]
    refuse_set(layers[-1], plans[-1].outputs)
    refuse_shared([plan.layers for plan in plans])
    return plans


def _plan(
    index: int, layers: Sequence[Layer], traced: Sequence[TracedLayer], shares: Sequence[float]
) -> BlockPlan:
    return BlockPlan(
        index=index,
        layers=tuple(layers),
        inputs=_of_samples(traced[0].inputs),
        outputs=_of_samples(traced[-1].outputs),
        flows=tuple(
            Flow(_of_samples(one.outputs), one.side, one.learned, one.largest, one.moves) for one in traced
        ),
        layer_shares=tuple(shares),
        parameters=sum(parameter.numel() for parameter in BlockModule(layers).parameters()),
    )


def _of_samples(types: Types) -> Types:
    return {name: TensorType(kind.shape[1:], kind.dtype) for name, kind in types.items()}


def block_starts(layers: list[Layer], blocks: int) -> list[int]:
    """Return the indexes of the layers at which an automatic cut into so many blocks lets one begin; 0 is the first.

    Raises
    ------
    InputError
        There are fewer such layers than blocks.
    """
    learning = [index for index, layer in enumerate(layers) if layer.has_parameters]
    starts = [0, *learning[1:]]
    if not 1 <= blocks <= len(starts):
        raise InputError(
            BLOCKS_KEY,
            str(blocks),
            f"a number from 1 to {len(starts)}, since a block begins at a layer with parameters",
        )
    preferred = [
        start for start in starts if start == 0 or getattr(layers[start - 1].module, "cut_after", True)
    ]
    return preferred if blocks <= len(preferred) else starts
