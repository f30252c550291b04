"""Make the feedback of each layer: a rule of its own, or one share of a broadcast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.direct import WHERE, OutputError, require_outputs
from lowdimfa.chain.layers import map_of, padding_before
from lowdimfa.chain.oja import Drive
from lowdimfa.chain.rules import ChainRule, LowDimensional
from lowdimfa.errors import InputError, in_words
from lowdimfa.rules import CHAIN_RULES
from lowdimfa.tickets import derive_seed


class Maker(Protocol):
    """Makes the feedback of one weight."""

    def make(self, name: str, module: nn.Module, weight: Tensor, part: str = "") -> ChainRule:
        """Return the feedback of a layer's weight; ``part`` names one of several."""


@dataclass(frozen=True)
class Shared:
    """Feedback of a weight, with what the first layer that has this weight asked for."""

    rule: ChainRule
    name: str
    asked: Mapping[str, object]
    weight: Tensor  # held, so that no other one can get its identity


class FeedbackMaker:
    """Makes feedback by the rules of the chain form. Layers that share a weight share its feedback."""

    def __init__(self, config: ChainConfig) -> None:
        self._config = config
        self._has_error_dim = CHAIN_RULES.find(config.rule).error_dim_of_layer
        self._made: dict[tuple[object, ...], Shared] = {}

    def make(self, name: str, module: nn.Module, weight: Tensor, part: str = "") -> ChainRule:
        """Return the feedback of a layer's weight.

        Raises
        ------
        InputError
            Another layer has the same weight, and other settings.
        """
        map_ = map_of(module)
        error_dim = self._config.error_dim_of(name, len(weight) // map_.groups)
        asked: dict[str, object] = {"p_targets": name in self._config.p_targets}
        if self._has_error_dim:
            asked |= {"groups": map_.groups, "error_dims": error_dim}
        key = (*_identity(weight), part)
        if key not in self._made:
            rule = _made(self._config, name, part, map_, weight, error_dim)
            _refuse_idle_targets(rule, name, self._config)
            self._made[key] = Shared(rule, name, asked, weight)
        _refuse_disagreement(self._made[key], name, asked)
        return self._made[key].rule


def _refuse_idle_targets(rule: ChainRule, name: str, config: ChainConfig) -> None:
    if name in config.p_targets and isinstance(rule, LowDimensional) and not rule.learns_p:
        raise InputError(
            "convert: p_targets",
            f"the layer {name!r}, whose error dimension is all of its {rule.P.shape[-1]} outputs",
            "layers whose P learns",
            f"Leave it out, or give it fewer: error_dims={{{name!r}: …}}.",
        )


def _identity(weight: Tensor) -> tuple[object, ...]:
    """Return what tells a weight: the tensor, or of a view, made anew whenever it is read, what it shows of which."""
    if weight._base is None:
        return (id(weight),)
    return id(weight._base), weight.storage_offset(), weight.shape, weight.stride()


def _refuse_disagreement(made: Shared, name: str, asked: Mapping[str, object]) -> None:
    for setting, value in asked.items():
        if value != made.asked[setting]:
            raise InputError(
                f"convert: {'model' if setting == 'groups' else setting}",
                f"the layers {made.name!r} and {name!r}, which share a weight, with {setting} of "
                f"{made.asked[setting]} and {value}",
                "the same for both, as layers that share a weight share its feedback",
                f"Otherwise leave both exact: skip=[{made.name!r}, {name!r}].",
            )


class DirectMaker:
    """Makes feedback that shares one broadcast of the model's output error.

    Parameters
    ----------
    model
        Whose output has the error.
    layers
        Those to convert, by name.
    config
        The conversion.
    example
        A batch of inputs, or None.

    Attributes
    ----------
    output
        Catches and projects the error.

    Raises
    ------
    InputError
        The width of the output or of a layer's input can't be told.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], config: ChainConfig, example: Tensor | None
    ) -> None:
        _refuse_time_first(layers)
        self._config = config
        self._inputs: dict[nn.Module, torch.Size] = {}
        task_dim = _last_width(model) if example is None else self._trace(model, layers, example)
        like = next(next(iter(layers.values())).parameters())
        error_dim = config.error_dim_of("", task_dim)
        generator = torch.Generator().manual_seed(_seed(config, "output", "P"))
        self.output = OutputError(task_dim, error_dim, like, config, generator)

    def make(self, name: str, module: nn.Module, weight: Tensor, part: str = "") -> ChainRule:
        """Return the feedback of one place in the model."""
        features = self._features(name, module, weight)
        return _made(self._config, name, part, map_of(module), weight, features, self.output)

    def _features(self, name: str, module: nn.Module, weight: Tensor) -> int:
        if not isinstance(module, nn.Conv2d):
            return weight.shape[1]
        if module not in self._inputs:
            raise InputError(
                "convert: example",
                f"none that reaches the convolution {name!r}",
                f"a batch of inputs for {WHERE}, which tells the size of its images",
            )
        channels, height, width = self._inputs[module][-3:]
        left, right, top, bottom = padding_before(module)
        return channels * (height + top + bottom) * (width + left + right)

    @torch.no_grad()
    def _trace(self, model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> int:
        """Run the example in evaluation mode, keep the shapes of the layers' inputs, and return the output's width."""

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inputs[module] = inputs[0].shape

        convolutions = [module for module in layers.values() if isinstance(module, nn.Conv2d)]
        handles = [module.register_forward_pre_hook(keep) for module in convolutions]
        modes = [(module, module.training) for module in model.modules()]
        try:
            output = model.eval()(example)
        except (Exception, SystemExit) as error:  # a user's model may fail in any way
            found = f"one with which the model fails ({in_words(error)})"
            raise InputError(
                "convert: example", found, "a batch of inputs, as the model is called with"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode
        if not isinstance(output, Tensor):
            found = f"a model that puts out a {type(output).__name__}"
            raise InputError(WHERE, found, "one tensor, whose gradient is the error")
        require_outputs(output)
        return output.shape[-1]


def _last_width(model: nn.Module) -> int:
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    if not widths:
        raise InputError("convert: example", "none", f"a batch of inputs for {WHERE} without linear layers")
    return widths[-1]


def _refuse_time_first(layers: Mapping[str, nn.Module]) -> None:
    for name, module in layers.items():
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            raise InputError(
                WHERE, f"the attention {name!r} with batch_first=False", "samples along the first dimension"
            )


def _made(config: ChainConfig, name: str, part: str, *arguments: Any) -> ChainRule:
    seed = _seed(config, name, part)
    drive: Drive = "targets" if name in config.p_targets else "errors"
    generator = torch.Generator().manual_seed(seed)
    made = CHAIN_RULES.make(config.rule, seed, *arguments, config, generator, drive=drive)
    if "_modules" not in vars(made):
        found = f"{CHAIN_RULES.name_of(type(made))!r}, whose constructor doesn't call that of its base class"
        raise InputError(CHAIN_RULES.key, found, "super().__init__(…) first")
    return made


def _seed(config: ChainConfig, name: str, part: str) -> int:
    return derive_seed(config.seed, "chain", name, part)
