"""What the error at every layer of a block costs or gains in accuracy, by AdamW and by Muon."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gap.networks import NETWORKS
from benchmarks.gap.rules import BACKPROP, READOUT, by_muon

BLOCKS = 2
"""As in the tables of speed: the fewer the blocks, the more layers there are that else have a gradient."""

ROWS = {name: NETWORKS[name] for name in ("mlp", "cnn", "vit", "char")}

_END = replace(READOUT, label="error at the end of each block", blocks=BLOCKS)
_EVERY = replace(_END, label="error at every layer", feedback=replace(READOUT.feedback, every_layer=True))
_RULES = (BACKPROP, _END, _EVERY)
RULES = (*_RULES, *map(by_muon, _RULES))
