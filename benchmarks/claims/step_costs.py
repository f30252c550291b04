"""What a training step costs by backpropagation and by the chain form: products counted, by hand too, and time.

Counted are multiplications and additions in matrix products and convolutions, as `torch.utils.flop_counter` has them.
Activations, normalisations, and the optimiser are not among them; the time has all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims.settings import WEIGHT_DECAY
from lowdimfa import ChainConfig, convert
from lowdimfa.models.transformer import Attention

PARTS = ("forward", "weights", "errors", "learning Q", "learning P")
PHASES = ("forward", "backward", "optimizer")
CLASSES = 10
RATE = 1e-3


@dataclass(frozen=True)
class Network:
    """A network for images of 10 classes, and the error dimensions to try.

    Attributes
    ----------
    label
        For tables and figures.
    model, arguments
        Factory in `lowdimfa.models`.
    image
        Shape of a sample.
    batch_size
        Samples of a step.
    error_dims
        ``r`` by label: a number, or a share of each layer's outputs. The output layer has all of its own.
    output_layer
        Its name.
    accuracy
        The claim that says which ``r`` keeps the accuracy on such networks.
    settings
        Further settings of the conversion.
    """

    label: str
    model: Callable[..., nn.Sequential]
    arguments: tuple[Any, ...]
    image: tuple[int, ...]
    batch_size: int
    error_dims: Mapping[str, int | float]
    output_layer: str
    accuracy: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, error_dim: int | float | None) -> nn.Sequential:
        """Return the network, converted unless ``error_dim`` is None."""
        torch.manual_seed(0)
        model = self.model(*self.arguments)
        if error_dim is None:
            return model
        return convert(model, error_dim, error_dims={self.output_layer: CLASSES}, **self.settings)

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets."""
        inputs = torch.randn(self.batch_size, *self.image, device=device)
        return inputs, torch.arange(self.batch_size, device=device) % CLASSES

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        return {
            "model": f"lowdimfa.models.{self.model.__name__}{self.arguments}",
            "image": list(self.image),
            "batch_size": self.batch_size,
            "error_dims": dict(self.error_dims) | {"output layer": CLASSES},
            "p_rule": ChainConfig.p_rule,
            "p_samples": ChainConfig.p_samples,
            "optimizer": f"AdamW, weight_decay {WEIGHT_DECAY}, for W and Q",
            "precision": "fp32",
        }


def counted(network: Network, error_dim: int | float | None) -> dict[str, int]:
    """Return the operations of a forward and a backward pass, counted as they are called, without computing them."""
    device = torch.device("meta")
    return operations(network.build(error_dim).to(device), *network.batch(device))


def operations(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, int]:
    """Return the operations of a forward and a backward pass of a model on the meta device."""
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention on a CPU isn't counted
        with forward:
            loss = functional.cross_entropy(model(inputs), targets)
        with backward:
            torch.autograd.backward(loss)
    return {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}


@torch.no_grad()
def by_hand(network: Network, error_dim: int | float | None) -> dict[str, int]:
    """Return the same by formula: a forward pass, and the four parts of a backward pass.

    A layer maps ``N`` vectors (samples, times tokens or pixels) from ``i`` numbers (times the kernel's size) to ``o``.
    """
    found = dict.fromkeys(PARTS, 0)
    layers: list[tuple[Any, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, Attention):  # two products forward, each with two in return
            batch, tokens, width = inputs[0].shape
            found["forward"] += 4 * batch * tokens**2 * width
            found["errors"] += 8 * batch * tokens**2 * width
        else:
            layers.append((module, output))

    model = network.build(error_dim).to("meta")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Attention):
            module.register_forward_hook(note)
    model(network.batch(torch.device("meta"))[0])
    for number, (module, output) in enumerate(layers):
        outgoing, incoming = module.weight.flatten(1).shape
        vectors = output.numel() // outgoing
        whole = 2 * vectors * incoming * outgoing
        found["forward"] += whole
        found["weights"] += whole
        if number == 0:  # no error leaves the first layer
            continue
        if error_dim is None:
            found["errors"] += whole
            continue
        r = module.feedback.P.shape[-2]
        found["errors"] += 2 * vectors * r * (incoming + outgoing)
        found["learning Q"] += 2 * r * incoming * min(vectors, outgoing)
        if r < outgoing:
            found["learning P"] += 4 * r * outgoing * min(vectors, ChainConfig.p_samples or vectors)
    return found


class Contestant:
    """A network, its optimiser, and the seconds of each phase of the steps that it has run, by a clock."""

    def __init__(
        self,
        network: Network,
        error_dim: int | float | None,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._model = network.build(error_dim).to(device).train()
        self._batch = network.batch(device)
        self._device = device
        parameters = self._model.parameters()
        self._optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=WEIGHT_DECAY)
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def step(self, keep: bool) -> None:
        """Run one step; keep its times unless it warms up."""
        inputs, targets = self._batch
        marks = [self._now()]
        loss = functional.cross_entropy(self._model(inputs), targets)
        marks.append(self._now())
        torch.autograd.backward(loss)
        marks.append(self._now())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        marks.append(self._now())
        for phase, begin, end in zip(PHASES, marks, marks[1:], strict=False):
            if keep:
                self.seconds[phase].append(end - begin)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


def timed(network: Network, device: torch.device, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each phase by error dimension (``backpropagation`` first), in turn and changing order."""
    contestants = {"backpropagation": Contestant(network, None, device)}
    contestants |= {label: Contestant(network, r, device) for label, r in network.error_dims.items()}
    entered = list(contestants.values())
    for number in range(-1, repetitions):  # the first round warms up
        turn = number % len(entered)
        for contestant in entered[turn:] + entered[:turn]:
            contestant.step(keep=number >= 0)
    return {label: contestant.seconds for label, contestant in contestants.items()}
