"""What blocks and the head share: layers run as a micro-batch wants them, and their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lowdimfa import compiling
from lowdimfa.block_module import BlockModule, load_layers, pack_layers, unchanged_buffers
from lowdimfa.encoding import State
from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.feedback.kept import Kept
from lowdimfa.generators import seed_generators
from lowdimfa.in_place import Untouched
from lowdimfa.optim import Updater
from lowdimfa.sending import arriving
from lowdimfa.set_taps import perturb_at
from lowdimfa.sites import FeedbackSite, load_rules, pack_rules
from lowdimfa.stage_config import StageConfig
from lowdimfa.stash import StashedWeights, WeightStash
from lowdimfa.tickets import Ticket, derive_seed
from lowdimfa.values import ONE, PLAIN, Activation, Ports, Value, mapped, onward, opened, without_past


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
    sites
        Where the broadcast error enters: at the ends of the parts, of all in a block and of all but the last in the head.
    config
        How the layers are run.
    parts
        Where parts begin, between which no gradient passes: indexes of layers, 0 first.
    ports
        What enters and leaves.

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
        sites: Sequence[FeedbackSite],
        config: StageConfig,
        parts: Sequence[int] = (0,),
        ports: Ports = PLAIN,
    ) -> None:
        self.index, self.ports = index, ports
        self.module, self.updater = module, updater
        held = chain(module.parameters(), module.buffers())
        self.device = next((tensor.device for tensor in held), torch.device("cpu"))
        self.seed = config.seed
        self.sites = list(sites)
        self._rules: list[Kept] = [site.feedback for site in sites]  # in the head also the one for P
        self._probe_noise = config.probe_noise
        self._autocast, self.form = config.precision == "bf16", config.form
        modules = [module] if len(parts) == 1 else module.parts(parts)
        self._parts = [compiling.compiled(part, index) if config.compiled else part for part in modules]
        self._stash = WeightStash(module) if config.staleness and sites else None
        self._untouched = Untouched(index)
        self._frozen = [(n, one) for n, one in module.named_plain_parameters() if not one.requires_grad]
        self._learned = Ticket(0, 0)

    def run(self, inputs: Activation, ticket: Ticket) -> Activation:
        """Run the layers on a micro-batch in training mode, with random numbers that depend on the ticket alone."""
        return onward(inputs, self._run(inputs, ticket, lambda part, output: output)[-1])

    def run_parts(
        self,
        inputs: Activation,
        ticket: Ticket,
        change: Callable[[int, Value], Value] = lambda part, output: output,
        cut: Callable[[Value], Value] = without_past,
    ) -> list[Value]:
        """Do as `run`, but let no gradient pass from one part to the one before.

        Parameters
        ----------
        inputs, ticket
            The micro-batch.
        change
            Gets the number of a part and its output, and returns what takes the output's place.
        cut
            Gets what goes into a part, and returns it without its past.

        Returns
        -------
        list of Value
            The outputs of all parts.
        """
        return self._run(inputs, ticket, change, cut)

    def _run(
        self,
        inputs: Activation,
        ticket: Ticket,
        change: Callable[[int, Value], Value],
        between: Callable[[Value], Value] = lambda output: output,
    ) -> list[Value]:
        self.module.train()
        self.seed_for("forward", *ticket)
        stream, side = self.entering(inputs)
        outputs = [stream]
        for number, part in enumerate(self._parts):
            output = self._call(number, part, between(outputs[-1]), side)
            outputs.append(change(number, self._full_precision(output)))
        return outputs[1:]

    def entering(self, inputs: Activation) -> tuple[Value, Mapping[str, Tensor]]:
        """Return what arrives, as the layers take it, and what goes beside it."""
        stream, side = opened(inputs)
        if self.form is not None and self.index > 0:  # to the first block comes data
            stream = arriving(self.form, self.ports.arrives, stream)
        return stream, side

    def _call(
        self, number: int | None, layers: Callable[..., Value], inputs: Value, side: Mapping[str, Tensor]
    ) -> Value:
        """Run a part, or all layers, on activations that others may hold: these stay as they are."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._untouched.by(number, layers, inputs, side)

    def seed_for(self, purpose: str, *names: int) -> None:
        """Let what layers, losses and optimisers draw depend on the seed, the block and these names alone."""
        seed_generators(derive_seed(self.seed, purpose, self.index, *names), self.device)

    @torch.no_grad()
    def run_perturbed(
        self, inputs: Activation, ticket: Ticket, entering: list[Value] | None = None
    ) -> tuple[Value, list[Tensor]]:
        """Run the layers once more on perturbed inputs, with noise of the stage's own added at each site.

        What goes into each part is added to ``entering``.

        Dropout draws as in the clean pass, and running statistics stay as the clean pass left them.

        Returns
        -------
        output, moved
            The output, and the change of each site's tap by its own noise.
        """
        seed = derive_seed(self.seed, "probe", self.index, *ticket)
        generator = torch.Generator(self.device).manual_seed(seed)
        moved: list[Tensor] = []

        def perturb(part: int, output: Value) -> Value:
            if part >= len(self.sites):  # the head's last part, or a block that learns nothing
                return output
            perturbed, change = perturb_at(self.sites[part].tap, output, self._probe_noise, generator)
            moved.append(change)
            return perturbed

        def enter(value: Value) -> Value:
            if entering is not None:
                entering.append(value)
            return value

        with unchanged_buffers(self.module):
            return self.run_parts(inputs, ticket, perturb, enter)[-1], moved

    @torch.no_grad()
    def accumulate_probe(self, moved: Sequence[Tensor], response: Tensor, ticket: Ticket) -> None:
        """Let the feedback weights take in a probe: what `run_perturbed` returned, and the output's response."""
        self.seed_for("probe update", *ticket)
        for site, change in zip(self.sites, moved, strict=True):
            site.feedback.accumulate_probe(change, response)

    @contextmanager
    def learning(self) -> Iterator[StashedWeights | None]:
        """Record graphs for a backward that may come after the weights have changed, and give those to run it with."""
        keeping = nullcontext() if self._stash is None else self._stash.keeping()
        with torch.enable_grad(), keeping as weights:
            yield weights

    @torch.no_grad()
    def evaluate(self, inputs: Activation, batch: int = 0) -> Activation:
        """Run the layers in evaluation mode on a batch of that number; nothing is kept and nothing changes."""
        self.seed_for("evaluate", batch)
        with self.evaluating():
            output = self._full_precision(self._call(None, self.module, *self.entering(inputs)))
        return onward(inputs, mapped(output, Tensor.contiguous))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the layers be in evaluation mode, with averages where these are kept, then as they are in training.

        Some layers change their weights with their mode, as those that merge an adapter into what it is added to.
        """
        average = self.updater.average
        with nullcontext() if average is None else average.in_place():
            self.module.eval()
            try:
                yield
            finally:
                self.module.train()

    def _full_precision(self, output: Value) -> Value:
        """Undo autocast at the block's end: what leaves has the type that the plan announced, whatever layer is last."""
        if not self._autocast:
            return output
        if isinstance(output, Tensor):
            return _typed(output, self.leaving_type(ONE))
        return {name: _typed(tensor, self.leaving_type(name)) for name, tensor in output.items()}

    def leaving_type(self, name: str) -> torch.dtype:
        """Return the type in which floating-point numbers leave, where autocast would have another."""
        return torch.float32

    def step(self) -> None:
        """Apply the accumulated gradients to the layers and the feedback weights; it raises as `update` does."""
        self.seed_for("rules", self._learned.step)
        with torch.no_grad():
            for rule in self._rules:
                rule.step()
        self.before_update()
        self.update()

    def update(self) -> None:
        """Let the optimiser apply the gradients.

        Raises
        ------
        InputError
            A layer has begun to train a parameter that was frozen when the optimiser was made.
        """
        self._refuse_thawed()
        self.seed_for("step", self._learned.step)
        self.updater.step()

    def _refuse_thawed(self) -> None:
        for name, parameter in self._frozen:
            if parameter.requires_grad:
                raise InputError(
                    "model.factory",
                    f"a layer that lets its parameter {name!r} require a gradient while it trains, which it did not when "
                    "the optimiser was made",
                    "parameters that are frozen, or learn, from the first step on",
                    "Unfreeze it in a second run, which model.weights lets begin with the weights of the first.",
                )

    def forget(self) -> None:
        """Drop what micro-batches have accumulated since the last step, which failed before it was applied."""
        for parameter in (*self.updater.trained, *(rule.weights for rule in self._rules)):
            parameter.grad = None
        for rule in self._rules:
            # It may be what failed, or there is no memory for copies.
            with torch.no_grad(), suppress(Exception):
                weights, kept = rule.weights.detach().clone(), deepcopy(rule.state())
                try:
                    rule.step()  # uses up the rule's sums
                finally:
                    rule.weights.data.copy_(weights)
                    rule.weights.grad = None
                    rule.load(kept)

    def before_update(self) -> None:
        """Keep the weights for forwards whose updates are to come; to be called before these change."""
        if self._stash is not None:
            self._stash.before_update()

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
        if not finite_sum(values):
            raise self._not_finite(what, step)

    def check_finite(self, values: Tensor, what: str, step: int) -> None:
        """Do as `require_finite`, or leave the finding to whoever set `look_later`."""
        self.check(finite_sum(values), partial(self._not_finite, what, step))

    def check(self, passed: Tensor, failure: Callable[[], NotFiniteError]) -> None:
        """Raise the failure if a boolean scalar is false, or leave that to whoever set `look_later`."""
        if self.look_later is not None:
            self.look_later(passed, failure)
        elif not passed:
            raise failure()

    def _not_finite(self, what: str, step: int) -> NotFiniteError:
        config = self.updater.config
        return NotFiniteError(
            f"{what} of block {self.index} ({self.boundary}) is not finite at step {step}; "
            f"lower the learning rate ({config.rate_key}), set {config.clip_key}, or check the data",
            block=self.index,
            step=step,
            setting=config.rate_key,
        )

    def state(self) -> State:
        """Return everything that the block needs to go on.

        Its tensors are called ``model/<parameter or buffer>``, ``optimizer/<parameter>/<key>``, ``feedback/<boundary
        layer>/Q``, ``rule/<boundary layer>/<name>``, ``head/P`` and the like, whatever the cut.

        Raises
        ------
        InputError
            A module, the optimiser, the schedule or a rule keeps something that a checkpoint can't hold.
        """
        of_layers, layers = pack_layers(self.module)
        of_updater, updater = self.updater.state()
        of_rules, rules = pack_rules(self.sites)
        return State(of_layers | of_rules | of_updater, {"updater": updater, **layers, "rules": rules})

    def load(self, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
        """Restore what `state` returned; feedback weights of a new site stay as they were drawn.

        Parameters
        ----------
        tensors
            Those of the state, and maybe others. They may become the block's own.
        scalars
            Of the block; where the network was cut otherwise, of every block that had some of its layers.
        """
        load_layers(self.module, tensors, *scalars)
        self.updater.load(tensors, *(part["updater"] for part in scalars))
        load_rules(self.sites, tensors, *(part.get("rules", {}) for part in scalars))


def _typed(output: Tensor, kind: torch.dtype) -> Tensor:
    return output.to(kind) if output.is_floating_point() else output


def finite_sum(values: Tensor) -> Tensor:
    """Return whether a sum over values of any type is finite, without a wait for their device."""
    return torch.isfinite(values.sum(dtype=None if values.is_complex() else torch.float32))
