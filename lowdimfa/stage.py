"""What blocks and the head share: layers run as a micro-batch wants them, and their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowdimfa import compiling
from lowdimfa.accumulation import AccumulateWeightGradients
from lowdimfa.errors import NotFiniteError
from lowdimfa.optim import Updater
from lowdimfa.partition import BlockModule
from lowdimfa.sites import FeedbackSite
from lowdimfa.stash import WeightStash
from lowdimfa.tickets import Ticket, derive_seed, seed_everything


class Stage:
    """What blocks and the head share: layers, their random numbers, precision, and what is kept of them.

    Parameters
    ----------
    index
        Position of the block in the network, for messages and seeds.
    module
        The layers.
    updater
        Optimiser, scheduler and clipping.
    seed
        The run's seed.
    precision
        ``fp32``, or ``bf16`` for autocast.
    staleness
        Above 0, weights may change between a forward and its update, so those that the forward used are kept.
    compiled
        Whether ``torch.compile`` makes the layers' training pass.
    sites
        Where the broadcast error enters: at the ends of the parts, of all in a block and of all but the last in the head.
    parts
        Where parts begin, between which no gradient passes: indexes of layers, 0 first.
    probe_noise
        Standard deviation of a probe's noise at a site, relative to that of the output there.

    Attributes
    ----------
    look_later
        Takes what a forward found on its device, and what to raise if that is false, in place of a look at once: that
        look waits for the device. Whoever takes it must look before anything leaves the block or changes its weights.
    """

    look_later: Callable[[Tensor, Callable[[], NotFiniteError]], None] | None = None

    def __init__(
        self,
        index: int,
        module: BlockModule,
        updater: Updater,
        *,
        seed: int,
        precision: str,
        staleness: int,
        compiled: bool = False,
        sites: Sequence[FeedbackSite] = (),
        parts: Sequence[int] = (0,),
        probe_noise: float = 0.05,
    ) -> None:
        self.index = index
        self.module = module
        self.updater = updater
        self.device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
        self.seed = seed
        self.sites = list(sites)
        self._probe_noise = probe_noise
        self._autocast = precision == "bf16"
        modules = [module] if len(parts) == 1 else module.parts(parts)
        self._parts = [compiling.compiled(part, index) if compiled else part for part in modules]
        self._stash = WeightStash(module) if staleness else None

    def run(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers on a micro-batch in training mode, with random numbers that depend on the ticket alone."""
        return self._run(inputs, ticket, lambda part, output: output)[-1]

    def run_parts(
        self,
        inputs: Tensor,
        ticket: Ticket,
        change: Callable[[int, Tensor], Tensor] = lambda part, output: output,
    ) -> list[Tensor]:
        """Do as `run`, but let no gradient pass from one part to the one before.

        Parameters
        ----------
        inputs, ticket
            The micro-batch.
        change
            Gets the number of a part and its output, and returns what takes the output's place.

        Returns
        -------
        list of Tensor
            The outputs of all parts.
        """
        return self._run(inputs, ticket, change, Tensor.detach)

    def _run(
        self,
        inputs: Tensor,
        ticket: Ticket,
        change: Callable[[int, Tensor], Tensor],
        between: Callable[[Tensor], Tensor] = lambda output: output,
    ) -> list[Tensor]:
        self.module.train()
        seed_generators(derive_seed(self.seed, "forward", self.index, *ticket), self.device)
        outputs = [inputs]
        for number, part in enumerate(self._parts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                output = part(received(between(outputs[-1])))
            outputs.append(change(number, self._full_precision(output)))
        return outputs[1:]

    @torch.no_grad()
    def run_perturbed(self, inputs: Tensor, ticket: Ticket) -> tuple[Tensor, list[Tensor]]:
        """Run the layers once more on perturbed inputs, with noise of the stage's own added at each site.

        Dropout draws as in the clean pass, and running statistics stay as the clean pass left them.

        Returns
        -------
        output, moved
            The output, and the change of each site's tap by its own noise.
        """
        seed = derive_seed(self.seed, "probe", self.index, *ticket)
        generator = torch.Generator(self.device).manual_seed(seed)
        moved: list[Tensor] = []

        def perturb(part: int, output: Tensor) -> Tensor:
            if part == len(self.sites):  # the head's last part, whose output is the network's
                return output
            perturbed, change = self.sites[part].tap.perturb(output, self._probe_noise, generator)
            moved.append(change)
            return perturbed

        with unchanged_buffers(self.module):
            return self.run_parts(inputs, ticket, perturb)[-1], moved

    def accumulate_probe(self, moved: Sequence[Tensor], response: Tensor) -> None:
        """Let the feedback weights take in a probe: what `run_perturbed` returned, and the output's response."""
        for site, change in zip(self.sites, moved, strict=True):
            site.feedback.accumulate_probe(change, response)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Record graphs for a backward that accumulates gradients, maybe after the weights have changed."""
        keeping = nullcontext() if self._stash is None else self._stash.keeping()
        with torch.enable_grad(), keeping, AccumulateWeightGradients():
            yield

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, batch: int | None = None) -> Tensor:
        """Run the layers in evaluation mode; nothing is kept and nothing changes.

        What they draw depends on the number of the batch, if there is one.
        """
        self.module.eval()
        if batch is not None:
            seed_generators(derive_seed(self.seed, "evaluation", self.index, batch), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            output = self.module(received(inputs))
        return self._full_precision(output).contiguous()

    def _full_precision(self, output: Tensor) -> Tensor:
        """Undo autocast at the block's end: what leaves has the type that the plan announced, whatever layer is last."""
        return output.float() if self._autocast else output

    def step(self) -> None:
        """Apply the accumulated gradients to the layers and the feedback weights."""
        for site in self.sites:
            site.feedback.step()
        if self._stash is not None:
            self._stash.before_update()
        self.updater.step()

    @property
    def boundary(self) -> str:
        """Name of the last layer, under which the state of the block's end is kept."""
        return self.module.layer_names[-1]

    def require_finite(self, values: Tensor, what: str, step: int) -> None:
        """Raise if a sum over the values isn't finite.

        Raises
        ------
        NotFiniteError
            Names the block and the step.
        """
        if not _finite_sum(values):
            raise self._not_finite(what, step)

    def check_finite(self, values: Tensor, what: str, step: int) -> None:
        """Do as `require_finite`, or leave the finding to whoever set `look_later`."""
        self.check(_finite_sum(values), partial(self._not_finite, what, step))

    def check(self, passed: Tensor, failure: Callable[[], NotFiniteError]) -> None:
        """Raise the failure if a boolean scalar is false, or leave that to whoever set `look_later`."""
        if self.look_later is not None:
            self.look_later(passed, failure)
        elif not passed:
            raise failure()

    def _not_finite(self, what: str, step: int) -> NotFiniteError:
        return NotFiniteError(
            f"{what} of block {self.index} ({self.boundary}) is not finite at step {step}; "
            "lower the learning rate (train.optimizer.args.lr) or set train.grad_clip",
            block=self.index,
            step=step,
            setting="train.optimizer.args.lr",
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors, keyed by the plain model's names."""
        model = {f"model/{name}": value for name, value in self.module.plain_state_dict().items()}
        optimizer = {f"optimizer/{name}": value for name, value in self.updater.tensors().items()}
        feedback = {f"feedback/{site.boundary}/Q": site.feedback.weights.detach() for site in self.sites}
        return model | optimizer | feedback

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state as plain data."""
        return {"updater": self.updater.scalars()}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Restore what `tensors` and `scalars` returned; feedback weights of a new site stay as they were drawn."""
        self.module.load_plain_state_dict(_under(tensors, "model/"))
        self.updater.load(_under(tensors, "optimizer/"), scalars["updater"])
        for site in self.sites:
            saved = tensors.get(f"feedback/{site.boundary}/Q")
            if saved is not None:
                site.feedback.weights.data.copy_(saved)


def _finite_sum(values: Tensor) -> Tensor:
    return torch.isfinite(values.sum(dtype=torch.float32))


def received(activations: Tensor) -> Tensor:
    """Return activations as layers compute with them: bfloat16 is only the format in which they travel."""
    return activations.float() if activations.dtype == torch.bfloat16 else activations


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generators that layers and losses draw from: all of the CPU, and that of the block's GPU."""
    seed_everything(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Let a forward write to copies of a module's buffers, such as batch norm's running statistics.

    The buffers themselves aren't touched: a graph that is kept for a later backward may refer to them.
    """
    originals = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    for part, name, buffer in originals:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in originals:
            setattr(part, name, buffer)
