"""The plan of a network: its blocks and their feedback, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lowdimfa.balance import balance, bottleneck
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.errors import some_of
from lowdimfa.feedback.entering import features_of, parts_of, tap_of
from lowdimfa.feedback.making import ErrorShape, broadcast_width, feedback_columns
from lowdimfa.feedback.source import at_site, source_of, starts_as_identity, stays_transposed
from lowdimfa.formats import Format, nbytes
from lowdimfa.layers import Layer
from lowdimfa.partitioning import BlockPlan, block_starts
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.sending import format_between, sent_type
from lowdimfa.services.run.weights import Origin
from lowdimfa.sparse import Outline
from lowdimfa.values import ONE, Types


@dataclass(frozen=True)
class NetworkPlan:
    """The cut network and its feedback, without data.

    Attributes
    ----------
    blocks
        In order, the head last.
    shape
        Of the broadcast error.
    feedback
        With ``auto`` resolved.
    training
        What the blocks need to know of it.
    seconds
        What each block was measured to take per micro-batch; None where the cut goes by counted operations.
    weights
        Where those came from with which the run begins; None if not from files.
    outline
        In a trainer whose network is too large for one process: how to build some layers. The blocks then have none.
    note
        What people should know before the start.
    """

    blocks: list[BlockPlan]
    shape: ErrorShape
    feedback: FeedbackConfig
    training: TrainingConfig
    seconds: list[float] | None = None
    weights: Origin | None = None
    outline: Outline | None = None
    note: str = ""

    @property
    def shapes(self) -> NetworkPlan:
        """The same without any layer, as plain data."""
        named = [tuple(map(_stand_in, block.layers)) for block in self.blocks]
        blocks = [replace(block, layers=layers) for block, layers in zip(self.blocks, named, strict=True)]
        return replace(self, blocks=blocks, outline=None)

    def sent_bytes(self, index: int, samples: int) -> float:
        """Return the bytes of a block's output that travel for so many samples, probes included; of the head's none."""
        if index == len(self.blocks) - 1:
            return 0
        pairs = zip(self.blocks[index].outputs.values(), self.forms(index), strict=True)
        return (1 + self._probed) * sum(nbytes(sent_type(form, kind, samples)) for kind, form in pairs)

    def output_bytes(self, index: int) -> float:
        """Return the same for one sample in float32, whatever types and format the run sends."""
        outputs = () if index == len(self.blocks) - 1 else self.blocks[index].outputs.values()
        whole = (one._replace(dtype=torch.float32) if one.dtype.is_floating_point else one for one in outputs)
        return (1 + self._probed) * sum(map(nbytes, whole))

    @property
    def error_bytes(self) -> float:
        """The payload of the broadcast for one sample: its error, and the probes' responses."""
        size = 2 if self.feedback.broadcast == "bf16" else 4
        return (1 + self._probed) * size * broadcast_width(self.shape, self.feedback) * self.shape.positions

    @property
    def _probed(self) -> float:
        """The share of micro-batches that carry a probe, and so everything twice."""
        interval = self.feedback.probe_interval
        return 1 / (interval * self.training.microbatches) if interval else 0.0

    def forms(self, index: int) -> tuple[Format | None, ...]:
        """Return the format in which each tensor travels that a block puts out, or None for its own."""
        block, form = self.blocks[index], format_between(self.training, self.feedback)
        return tuple(form if name in block.tapped else None for name in block.outputs)

    @property
    def boundaries(self) -> list[str]:
        """Names of the layers at which the second and later blocks start."""
        return [block.name for block in self.blocks[1:]]

    def moving(self, counts: Mapping[str, Sequence[str]]) -> NetworkPlan:
        """Return the plan with what training moves beside what evaluation does: attributes, by the names of layers."""
        blocks = [
            replace(
                block,
                flows=tuple(
                    flow._replace(moves=tuple(dict.fromkeys((*flow.moves, *counts.get(layer.name, ())))))
                    for layer, flow in zip(block.layers, block.flows, strict=True)
                ),
            )
            for block in self.blocks
        ]
        return replace(self, blocks=blocks)

    @property
    def notices(self) -> list[str]:
        """What whoever starts the run has to know of its layers."""
        told = [layer.notice for block in self.blocks for layer in block.layers if layer.notice]
        moved = [
            f"{layer.name}: its forward changes {some_of(counts)}, which no checkpoint has: a resumed run and a "
            "replaced block begin with its first value again; what is computed must not depend on it, or it has to be "
            "a buffer"
            for block in self.blocks
            for layer, flow in zip(block.layers, block.flows, strict=True)
            if (counts := [name for name in flow.moves if name not in dict(layer.module.named_parameters())])
        ]
        return told + moved

    def describe(self, window: int, steps_per_epoch: int) -> dict[str, Any]:
        """Return the plan as the run directory's ``plan.json``."""
        sites = [parts_of(block, self.feedback, block is self.blocks[-1]).sites for block in self.blocks]
        entries = [[self._describe_entry(part) for part in parts] for parts in sites]
        features = [sum(entry["tap_features"] for entry in own) for own in entries]
        blocks = [
            {
                "index": block.index,
                "name": block.name,
                "layers": [layer.name for layer in block.layers],
                "parameters": block.parameters,
                "frozen_parameters": block.frozen,
                "input_shape": _shapes(block.inputs),
                "output_shape": _shapes(block.outputs),
                "cost_share": float(f"{block.cost_share:.6g}"),  # however small, some
                "layer_shares": [round(share, 6) for share in block.layer_shares],
            }
            | ({} if self.seconds is None else {"milliseconds": round(1e3 * self.seconds[i], 3)})
            | (entries[i][-1] if entries[i] else {"tap": None, "q_rule": None, "q_start": None})
            | {"tap_features": features[i]}
            for i, block in enumerate(self.blocks)
        ]
        columns = feedback_columns(self.shape, self.feedback)
        return {
            "blocks": blocks,
            "source": source_of(self.feedback),
            "error_dim": self.shape.error_dim,
            "p_rule": P_RULES.name_of(P_RULES.find(self.feedback.p_rule_or_fixed)),
            "broadcast_bytes_per_sample": self.error_bytes,
            "task_dim": self.shape.task_dim,
            "parameters": sum(block.parameters for block in self.blocks),
            "feedback_parameters": columns
            * sum(self._own_features(entry) for own in entries for entry in own),
            "feedback_columns": columns,
            "microbatches": self.training.microbatches,
            "window": window,
            "staleness": self.training.staleness,
            "steps": self.training.total_steps,
            "steps_per_epoch": steps_per_epoch,
            "balance": self._describe_balance(),
            "notices": self.notices,
        }

    def _describe_entry(self, part: BlockPlan) -> dict[str, Any]:
        """Return how the error enters at the end of a part of a block."""
        tap = tap_of(part, self.feedback, self.shape)
        own = at_site(self.feedback, starts_as_identity(part, tap, self.feedback, self.shape))
        rule = Q_RULES.name_of(Q_RULES.find(own.q_rule))
        return {
            "tap": tap.name,
            "q_rule": rule,
            "q_start": own.q_start,
            "tap_features": features_of(tap, part),
        }

    def _own_features(self, entry: dict[str, Any]) -> int:
        """Return the features of an entry that have feedback weights of their own, which `Pᵀ` isn't."""
        borrowed = entry["q_start"] == "identity" and stays_transposed(self.feedback)
        return 0 if borrowed else int(entry["tap_features"])

    def _describe_balance(self) -> dict[str, Any]:
        shares = [block.cost_share for block in self.blocks]
        layers = [layer for block in self.blocks for layer in block.layers]
        starts = {layers[index].name for index in block_starts(layers, 1)[1:]} | set(self.boundaries)
        return {
            "by": "flops" if self.seconds is None else "time",
            "bottleneck": bottleneck(shares),
            "predicted": round(balance(shares), 4),
            "starts": [layer.name for layer in layers if layer.name in starts],
        }


def _shapes(types: Types) -> list[int] | dict[str, list[int]]:
    shapes = {name: list(kind.shape) for name, kind in types.items()}
    return shapes.get(ONE, shapes)


def _stand_in(layer: Layer) -> Layer:
    """Return a layer without memory, of which one can tell whether there is something to learn."""
    parameters, module = list(layer.module.parameters()), nn.Identity()
    if parameters:
        learns = any(parameter.requires_grad for parameter in parameters)
        module.register_parameter("stand_in", nn.Parameter(torch.empty(0), requires_grad=learns))
    return replace(layer, module=module)
