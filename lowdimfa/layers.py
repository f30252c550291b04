"""The layers of a plain PyTorch model, in the order in which they run, all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain

import torch
from torch import Tensor, nn

from lowdimfa.calling import FACTORY_KEY, Takes, takes_of
from lowdimfa.errors import InputError

_KNOWN = ("torch.nn.", "lowdimfa.")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes
    ----------
    name
        By which the plain model registers it: ``name + ".weight"`` is a key of the plain state. With the number of the
        time where ``layers`` lists it again, as in ``act:2``: what is kept at its end is that place's.
    module
        The layer itself, called as `lowdimfa.calling` says.
    needed
        What later layers take by name; None where they aren't known.
    """

    name: str
    module: nn.Module
    needed: frozenset[str] | None = None

    @property
    def takes(self) -> Takes:
        """What its forward takes."""
        return takes_of(self.module, self.name, self.needed)

    @property
    def has_parameters(self) -> bool:
        """Whether the layer has something to learn."""
        return next(self.module.parameters(), None) is not None

    @property
    def notice(self) -> str:
        """What whoever starts a run has to know of the layer; empty if there is nothing."""
        return str(getattr(self.module, "notice", ""))


def as_module(model: object) -> nn.Module:
    """Return what a factory gave as one module; a list of modules becomes an `nn.Sequential`.

    Raises
    ------
    InputError
        It is neither a module nor a list of modules.
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, list | tuple) or not all(isinstance(part, nn.Module) for part in model):
        raise _not_layers(f"a {type(model).__name__}")
    return nn.Sequential(*model)


def channels_last(model: nn.Module) -> nn.Module:
    """Put the channels of two-dimensional convolutions last in memory; feature maps follow their weights."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def reads_maps_by_shape(model: nn.Module) -> bool:
    """Whether all that a model computes, hooks included, is code of torch's or this package's, which does so."""
    for module in model.modules():
        # With those that it inherits from: torch derives one of its own where a parameter is parametrised.
        classes = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module)]
        hooks = [hook for kind in _HOOKS for hook in getattr(module, kind).values()]
        codes = [*classes, *hooks, *([module.forward] if "forward" in vars(module) else [])]
        if not all(f"{getattr(code, '__module__', '')}.".startswith(_KNOWN) for code in codes):
            return False
    return True


def list_layers(model: object) -> list[Layer]:
    """Return the layers of a model in the order in which they run.

    Parameters
    ----------
    model
        An `nn.Sequential`; a list of modules; or a module that declares its layers: it has an attribute, or
        a method without arguments, called ``layers`` that gives an `nn.ModuleList`, an `nn.Sequential`, or a
        list of submodules or of their names.

    Raises
    ------
    InputError
        The layers can't be told, or they don't cover all of the model's parameters and buffers.
    """
    module = as_module(model)
    if runs_children(module):
        layers = [Layer(name, child) for name, child in module._modules.items() if child is not None]
    else:
        layers = _declared_layers(module)
    if not layers:
        raise _not_layers("a model without layers")
    _refuse_missed(module, layers)
    _refuse_unheard_hooks(module, layers)
    _refuse_unheard_modes(module, layers)
    needed: frozenset[str] = frozenset()
    for index, layer in reversed(list(enumerate(layers))):
        layers[index] = replace(layer, needed=needed)
        needed |= set(layer.takes.names)
    return layers


def runs_children(module: nn.Module) -> bool:
    """Whether a module does nothing but run its children in order."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def named_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module with their names."""
    return chain(module.named_parameters(prefix), module.named_buffers(prefix))


def _declared_layers(model: nn.Module) -> list[Layer]:
    declared = getattr(model, "layers", None)
    if callable(declared) and not isinstance(declared, nn.Module):
        declared = declared()
    if type(model).__module__.startswith("transformers."):
        raise InputError(
            FACTORY_KEY,
            f"a {type(model).__name__} of transformers",
            "lowdimfa.models:hugging_face, which takes its configuration or the folder that save_pretrained wrote",
        )
    if not isinstance(declared, nn.ModuleList | nn.Sequential | list | tuple):
        raise _not_layers(f"a {type(model).__name__} whose 'layers' is a {type(declared).__name__}")
    modules = {name: module for name, module in model.named_modules() if name}
    names = {id(module): name for name, module in modules.items()}
    layers: list[Layer] = []
    times: Counter[str] = Counter()
    for entry in declared:
        name = entry if isinstance(entry, str) else names.get(id(entry), "")
        if name not in modules:
            near = get_close_matches(str(entry), modules) if isinstance(entry, str) else []
            raise InputError(
                FACTORY_KEY,
                f"a layer {entry!r} in 'layers' that the {type(model).__name__} doesn't register",
                f"its submodules or their names{', such as ' + ', '.join(map(repr, near)) if near else ''}",
                "Assign the layer to an attribute of the model.",
            )
        times[name] += 1
        layers.append(Layer(name if times[name] == 1 else f"{name}:{times[name]}", modules[name]))
    return layers


def _refuse_missed(model: nn.Module, layers: list[Layer]) -> None:
    covered = {id(tensor) for layer in layers for _, tensor in named_tensors(layer.module)}
    missed = [name for name, tensor in named_tensors(model) if id(tensor) not in covered]
    if missed:
        raise InputError(
            FACTORY_KEY,
            f"a {type(model).__name__} whose layers leave out {', '.join(missed)}",
            "layers that cover every parameter and buffer",
            "Put what uses them into a module of its own and list that too.",
        )


def _refuse_unheard_hooks(model: nn.Module, layers: list[Layer]) -> None:
    """Refuse hooks of modules that only hold layers: blocks call the layers themselves."""
    called = {id(module) for layer in layers for module in layer.module.modules()}
    for name, module in model.named_modules():
        if id(module) not in called and any(getattr(module, hooks) for hooks in _HOOKS):
            raise InputError(
                FACTORY_KEY,
                f"a hook on {f'module {name!r}' if name else 'the model itself'}, which isn't called as a whole",
                "hooks on layers, or within them",
                "Register it on the first or the last layer.",
            )


def _refuse_unheard_modes(model: nn.Module, layers: list[Layer]) -> None:
    """Refuse a ``train`` of modules that only hold layers, where it does more than that of the layers does."""
    called = {id(module) for layer in layers for module in layer.module.modules()}
    holding = [module for module in model.modules() if id(module) not in called]
    if all(getattr(module.train, "__func__", None) is nn.Module.train for module in holding):
        return
    named = [(name, module) for name, module in model.named_modules() if id(module) in called]
    before = [(module, module.training) for module in model.modules()]
    try:
        for mode in (True, False):
            model.train(mode)
            wanted = [module.training for _, module in named]
            for layer in layers:
                layer.module.train(mode)
            for (name, module), training in zip(named, wanted, strict=True):
                if module.training != training:
                    left = "training" if training else "evaluation"
                    raise InputError(
                        FACTORY_KEY,
                        f"a train({mode}) of the model's own that leaves {name!r} in {left}",
                        "modes that each layer's own train() sets, since blocks call that",
                        "Override train() in the class of that layer.",
                    )
    finally:
        for module, training in before:
            module.training = training


def _not_layers(found: str) -> InputError:
    return InputError(
        FACTORY_KEY,
        found,
        "an nn.Sequential, a list of modules, or an nn.Module whose attribute or method 'layers' lists them",
    )
