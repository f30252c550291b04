"""What the error of the head's input lacks in blocks far from it: ``python -m benchmarks.gap.hops [--ways …]``.

On a residual stream each block delivers that error as it is, in place of what the blocks between make of it. Here other
ways to deliver it are tried, in plain torch: by the exact Jacobians of the next blocks (*hops*), and by a module of each
block's own that depends on its activity. None is a rule of the library: hops read the next block's weights or pass
gradients, and modules that learn from true gradients are bounds for what others could learn.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.claims.options import known
from benchmarks.claims.settings import VALIDATION
from benchmarks.gap.leads import LANGUAGE_MODEL
from benchmarks.reporting import markdown_table, mean_and_spread
from lowdimfa.data import BatchOrder
from lowdimfa.data.base import EVALUATION_SAMPLES
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.errors import InputError
from lowdimfa.models.transformer import EncoderBlock, initialise
from lowdimfa.network import computing_threads
from lowdimfa.tickets import Ticket

WIDTH, HEADS = 96, 4
WEIGHT_DECAY = 0.01
HIDDEN = 2 * WIDTH
"""Of a module that sees one token."""


@dataclass(frozen=True)
class Pass:
    """A forward pass in blocks: what entered and left each, cut from each other, and the error of the head's input."""

    entered: Sequence[Tensor]
    left: Sequence[Tensor]
    error: Tensor

    def back(self, block: int, last: int) -> Tensor:
        """Return the error at a block's output, exact from a later block's output on, where it is as broadcast."""
        error = self.error
        for one in range(last, block, -1):
            (error,) = torch.autograd.grad(self.left[one], self.entered[one], error, retain_graph=True)
        return error


class Way:
    """How the error reaches the blocks.

    Parameters
    ----------
    hops
        Blocks behind the error's own whose exact Jacobians it goes through; None for all, which is backpropagation.
    """

    def __init__(self, hops: int | None) -> None:
        self._hops = hops

    def deliver(self, blocks: Pass, block: int) -> Tensor:
        """Return the error at the output of a block; the head begins at the last output."""
        last = len(blocks.left) - 2
        return blocks.back(block, last if self._hops is None else min(block + self._hops, last))

    def step(self) -> None:
        """Learn."""


class Copied(Way):
    """Goes through copies of the next block's layers, which each block keeps and runs on its own output.

    Parameters
    ----------
    parts
        The layers of all blocks.
    refresh_every
        Steps after which the copies are made anew, of the weights of then.
    """

    def __init__(self, parts: Sequence[nn.Module], refresh_every: int) -> None:
        super().__init__(1)
        self._parts, self._refresh_every, self._steps = parts[1:-1], refresh_every, 0
        self._copies = deepcopy(self._parts)

    def deliver(self, blocks: Pass, block: int) -> Tensor:
        """Return the error that the copy's Jacobian makes; the last block before the head has the exact one."""
        if block == len(self._copies):
            return blocks.error
        here = blocks.left[block].detach().requires_grad_()
        (error,) = torch.autograd.grad(self._copies[block](here), here, blocks.error)
        return error

    def step(self) -> None:
        """Make the copies anew if it is time."""
        self._steps += 1
        if self._steps % self._refresh_every == 0:
            self._copies = deepcopy(self._parts)


class Learned(Way):
    """A module for each block, with AdamW and the rate of the layers, constant."""

    def __init__(self, parts: Sequence[nn.Module], rate: float, make: Callable[[], nn.Module]) -> None:
        super().__init__(0)
        self._modules = nn.ModuleList(make() for _ in parts[1:-1])
        self._optimizer = torch.optim.AdamW(
            self._modules.parameters(), rate, weight_decay=WEIGHT_DECAY, fused=True
        )

    def deliver(self, blocks: Pass, block: int) -> Tensor:
        """Return the error as the module has it; the last block before the head has the exact one anyway."""
        if block == len(self._modules):
            return blocks.error
        return self._by(self._modules[block], blocks, block)

    def step(self) -> None:
        """Apply what the modules have learned of a step."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _by(self, module: nn.Module, blocks: Pass, block: int) -> Tensor:
        """Let it learn from the true error, which no block has."""
        found = module(blocks.left[block].detach(), blocks.error)
        true = blocks.back(block, len(blocks.left) - 2)
        (functional.mse_loss(found, true) / true.square().mean()).backward()
        return found.detach()


class Imitating(Learned):
    """The module imitates all blocks up to the head, from what enters the head; the error goes back through it."""

    def _by(self, module: nn.Module, blocks: Pass, block: int) -> Tensor:
        here, there = blocks.left[block].detach().requires_grad_(), blocks.entered[-1].detach()
        found = module(here)
        (error,) = torch.autograd.grad(found, here, blocks.error, retain_graph=True)
        (functional.mse_loss(found, there) / functional.mse_loss(here.detach(), there)).backward()
        return error


class OfToken(nn.Module):
    """Adds to each token's error what two layers make of it and of the token's activity."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(2 * WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, activity: Tensor, error: Tensor) -> Tensor:
        """Return the error; its size for each token is kept out of what the layers see."""
        size = error.square().mean(-1, keepdim=True).sqrt() + 1e-12
        seen = torch.cat([functional.layer_norm(activity, (WIDTH,)), error / size], -1)
        return error + size * self.contract(functional.gelu(self.expand(seen)))


class OfLaterTokens(nn.Module):
    """Adds what `OfToken` does, and errors of later tokens by an attention of its own, which runs backward."""

    def __init__(self) -> None:
        super().__init__()
        self.of_token = OfToken()
        self.pattern, self.value = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, activity: Tensor, error: Tensor) -> Tensor:
        """Return the error."""
        size = error.square().mean().sqrt() + 1e-12
        pattern = self.pattern(functional.layer_norm(activity, (WIDTH,)))
        query, key = pattern.unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        value = self.value(error / size).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        later = torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool).triu(1)
        weights = (
            (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
            .masked_fill(later, -math.inf)
            .softmax(-1)
        )
        mixed = (weights.transpose(-1, -2) @ value).transpose(1, 2).flatten(2)
        return self.of_token(activity, error) + size * self.out(mixed)


def layer() -> nn.Module:
    """Return a transformer layer that begins as those of the network."""
    made = EncoderBlock(WIDTH, HEADS, 4.0, 0.0, causal=True)
    initialise(made, 8)
    return made


WAYS: dict[str, tuple[str, Callable[[Sequence[nn.Module], float], Way]]] = {
    "backpropagation": ("exact, by backpropagation", lambda parts, rate: Way(None)),
    "identity": ("as it is", lambda parts, rate: Way(0)),
    "hop": ("through the exact Jacobian of the next block", lambda parts, rate: Way(1)),
    "hops": ("through those of the next two blocks", lambda parts, rate: Way(2)),
    "copy-25": (
        "through a copy of the next block, of every 25th step",
        lambda parts, rate: Copied(parts, 25),
    ),
    "copy-100": (
        "through a copy of the next block, of every 100th step",
        lambda parts, rate: Copied(parts, 100),
    ),
    "imitating": (
        "through a layer that imitates all up to the head",
        lambda parts, rate: Imitating(parts, rate, layer),
    ),
    "token": (
        "changed by the token's activity, as learned from true gradients",
        lambda parts, rate: Learned(parts, rate, OfToken),
    ),
    "tokens": (
        "and by errors of later tokens, as learned from true gradients",
        lambda parts, rate: Learned(parts, rate, OfLaterTokens),
    ),
}
"""How the error is delivered, in words, and by what for the layers of all blocks and a rate."""


def perplexity(name: str, blocks: int, rate: float, epochs: int, seed: int) -> float:
    """Train the small language model and return its perplexity in validation."""
    network = replace(LANGUAGE_MODEL, epochs=epochs)
    data = network.dataset().with_validation(VALIDATION).limited(network.samples)
    torch.manual_seed(seed)
    layers = list(network.network())
    starts = [0, *(1 + 8 // blocks * block for block in range(1, blocks)), len(layers)]
    parts = [nn.Sequential(*layers[start:end]) for start, end in pairwise(starts)]
    whole = nn.Sequential(*parts)
    way = WAYS[name][1](parts, rate)
    optimizer = torch.optim.AdamW(whole.parameters(), rate, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, network.steps)
    order = BatchOrder(network.samples, network.batch_size, 1, seed)
    for step in range(network.steps):
        indices = order.indices(Ticket(step, 0))
        learn(parts, way, data.train.inputs(indices), data.train.targets(indices))  # type: ignore[arg-type]
        for one in (optimizer, way):
            one.step()
        optimizer.zero_grad()
        schedule.step()
    loss = tokens = 0.0
    with torch.no_grad():
        for indices in evaluation_batches(data.test, EVALUATION_SAMPLES):
            targets = data.test.targets(indices)
            loss += float(loss_of(whole(data.test.inputs(indices)), targets)) * targets.numel()
            tokens += targets.numel()
    return math.exp(loss / tokens)


def learn(parts: Sequence[nn.Module], way: Way, inputs: Tensor, targets: Tensor) -> None:
    """Accumulate every block's gradients for a batch."""
    entered, left = [inputs], list[Tensor]()
    for part in parts:
        left.append(part(entered[-1]))
        entered.append(left[-1].detach().requires_grad_())
    entered.pop()
    loss_of(left[-1], targets).backward()
    error = entered[-1].grad
    assert error is not None, "the head's input has no gradient"
    blocks = Pass(entered, left, error)
    errors = [way.deliver(blocks, block) for block in range(len(parts) - 1)]
    for part, output, delivered in zip(parts, left, errors, strict=False):
        torch.autograd.backward(output, delivered, inputs=list(part.parameters()))


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of tokens."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by the ways that the command line names, print perplexities, and return the exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap.hops", description=__doc__)
    parser.add_argument("--ways", default=",".join(WAYS), help="some of %(default)s")
    parser.add_argument("--blocks", type=int, choices=(2, 4, 8), default=8, help="default %(default)s")
    parser.add_argument(
        "--rate", type=float, default=4e-3, help="of AdamW, the cycle's highest; default %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=1, help="of 11,200 samples each; default %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default %(default)s")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args(arguments)
    try:
        ways = known(asked.ways.split(","), WAYS, "--ways")
    except InputError as error:
        print(f"benchmarks.gap.hops: {error.message}", file=sys.stderr)
        return error.exit_code
    found: dict[str, list[float]] = {name: [] for name in ways}
    with computing_threads(asked.threads):
        for name in ways:
            for seed in range(asked.seeds):
                found[name].append(perplexity(name, asked.blocks, asked.rate, asked.epochs, seed))
                print(f"{name}, seed {seed}: {found[name][-1]:.2f}", file=sys.stderr, flush=True)
    rows = [
        (WAYS[name][0], mean_and_spread(scores), ", ".join(f"{score:.2f}" for score in scores))
        for name, scores in found.items()
    ]
    print(markdown_table(("error of the head's input", "validation perplexity", "by seed"), rows))
    if asked.json:
        print(json.dumps(vars(asked) | {"perplexity": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
