"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimiser with one rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowdimfa.errors import InputError
from lowdimfa.muon_groups import Params, is_named, split

if TYPE_CHECKING:
    from lowdimfa.optim import Updater

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial that drives singular values towards 1, by Jordan et al."""
_OF_ADAMW = ("weight_decay", "betas", "eps", "fused")


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) for hidden layers' matrices, AdamW for everything else.

    Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about 1. Its step is that of
    `torch.optim.Muon`, but for the precision on a processor: torch's iterates in bfloat16, which one without such
    instructions does tens of times slower than in single precision. The kernel of a convolution is taken as the matrix
    ``(out, rest)``. As its authors advise, embeddings and the output layer are AdamW's, as are biases, norms, and all
    that isn't known to be a matrix. So are feedback weights: ``Q`` is the last layer of a readout.

    There is one rate, and so one schedule, for both: ``adjust_lr_fn="match_rms_adamw"`` gives Muon's steps the size of
    AdamW's (Liu et al., 2025). Groups of parameters have settings of their own, as those of `parameter_groups` of a
    converted model; each becomes two in ``param_groups``, what Muon has of it and what AdamW has, in this order, maybe
    with nothing in it.

    Parameters
    ----------
    params
        What is trained: parameters, ``model.named_parameters()``, or groups of either.
    lr
        Of both.
    weight_decay
        Of both, decoupled.
    momentum, nesterov, ns_steps, adjust_lr_fn
        Muon's, as in `torch.optim.Muon`; ``original`` is its authors' scale, for which rates of about 0.02 are usual.
    adamw_scale
        AdamW's rate, in multiples of ``lr``: 0.1, say, beside ``original`` and a rate of 0.02.
    betas, eps, fused
        AdamW's.
    adamw, muon
        Patterns of names in the plain model, such as ``["0.*", "embed.positions"]``, of what is AdamW's or, with two
        dimensions or more, Muon's whatever its kind; AdamW's go first. Names of feedback weights end in ``.Q``.
    kinds
        Of the parameters by name, as `lowdimfa.kinds.kinds_of` returns it. A plain mapping must be in the order of
        ``params``, unless these have names. A block's updater fills it in.

    Attributes
    ----------
    unused
        Those of the patterns that name nothing here.

    Raises
    ------
    ValueError
        Kinds and parameters don't go together, or a setting is out of bounds.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
        adamw_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
        adamw: Sequence[str] = (),
        muon: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(adamw, str) or isinstance(muon, str):
            raise ValueError("adamw and muon are lists of patterns, not text")
        groups = split(params, kinds, adamw, muon)
        given: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
        }
        given |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "adamw_scale": adamw_scale}
        given |= {"betas": tuple(betas), "eps": eps, "fused": fused}
        names = [name for group in groups for name in group.names()]
        unused = tuple(each for each in (*adamw, *muon) if not any(is_named(name, [each]) for name in names))
        # Both parts are always there, so that a schedule's list of rates, and a checkpoint's groups, fit every block.
        super().__init__([part for group in groups for part in group.parts()], given)
        self.unused = unused
        self._transposed = [group.transposed for group in groups]
        for group in self.param_groups:
            _check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group while the optimiser is made.

        Raises
        ------
        ValueError
            It is made already.
        """
        if "_transposed" in vars(self):
            raise ValueError(
                "Muon takes all of its parameters when it is made, when kinds tell what they are: give it all groups then"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        own = {"unused": self.unused, "_transposed": self._transposed}
        return super().__getstate__() | own

    def _adamw(self) -> Optimizer:
        """Return AdamW for what is its own, made for one step, with the state kept here."""
        groups = [
            {name: group[name] for name in _OF_ADAMW}
            | {"params": group["params"] or [torch.zeros(1)], "lr": group["lr"] * group["adamw_scale"]}
            for group in self.param_groups[1::2]
        ]
        made = torch.optim.AdamW(groups)
        made.state = self.state
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state.

        Raises
        ------
        ValueError
            It has AdamW's of what is Muon's here, or the reverse.
        """
        super().load_state_dict(state_dict)
        for place, group in enumerate(self.param_groups):
            needed = "exp_avg" if place % 2 else "momentum_buffer"
            for one in group["params"]:
                if self.state.get(one) and needed not in self.state[one]:
                    raise ValueError(
                        f"a parameter of shape {tuple(one.shape)} has the state of the other of Muon and AdamW: "
                        "keep the patterns adamw and muon as they were"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, flags in zip(self.param_groups[::2], self._transposed, strict=True):
            for matrix, transposed in zip(group["params"], flags, strict=True):
                if matrix.grad is not None:
                    self._step_matrix(matrix, matrix.grad, group, transposed)
        self._adamw().step()
        return loss

    def _step_matrix(
        self, matrix: Tensor, gradient: Tensor, group: Mapping[str, Any], transposed: bool
    ) -> None:
        state, momentum = self.state[matrix], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        wanted = state["momentum_buffer"]
        if group["nesterov"]:
            wanted = gradient.lerp(wanted, momentum)
        step = orthogonalised(wanted.reshape(len(wanted), -1), group["ns_steps"])
        rows, columns = step.shape[::-1] if transposed else step.shape
        scale = 0.2 * math.sqrt(max(rows, columns))
        if group["adjust_lr_fn"] == "original":
            scale = math.sqrt(max(1, rows / columns))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(step.reshape(matrix.shape), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """Return about ``U Vᵀ`` of ``matrix = U S Vᵀ``, by Newton–Schulz iterations: singular values from 0.5 to 1.5."""
    a, b, c = _COEFFICIENTS
    wide = len(matrix) <= matrix.shape[1]
    found = (matrix if wide else matrix.t()).to(_precision(matrix.device))
    found = found / found.norm().clamp(min=1e-7)  # not in place: it may be the momentum itself
    for _ in range(steps):
        gram = found @ found.t()
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found if wide else found.t()


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _check(group: Mapping[str, Any]) -> None:
    """Refuse settings that are out of bounds."""
    for name in ("lr", "weight_decay", "adamw_scale", "momentum"):
        if isinstance(group[name], bool) or not isinstance(group[name], Real | Tensor):
            raise ValueError(f"{name} is {group[name]!r}; a number is expected")
    if not group["adamw_scale"] > 0:
        raise ValueError(f"adamw_scale is {group['adamw_scale']}; a number above 0 is expected")
    momentum, steps, scale = group["momentum"], group["ns_steps"], group["adjust_lr_fn"]
    if not 0 <= momentum < 1 or not 1 <= steps < 100:
        raise ValueError(f"momentum is {momentum} and ns_steps {steps}; from 0 to below 1, and from 1 to 99")
    if scale not in ("original", "match_rms_adamw"):
        raise ValueError(f"adjust_lr_fn is {scale!r}; original or match_rms_adamw is expected")
    settings = {name: group[name] for name in ("lr", *_OF_ADAMW)}
    torch.optim.AdamW([torch.zeros(1)], **settings)  # which refuses what is out of bounds there


def refuse_unused(updaters: Iterable[Updater]) -> None:
    """Refuse patterns that name no parameter in any of the blocks of a network, and a Muon that has no matrix in any.

    Raises
    ------
    InputError
        Names the pattern, or what Muon looks for.
    """
    unused: dict[int, tuple[str, set[str]]] = {}
    idle: dict[int, str] = {}
    for updater in updaters:
        if isinstance(updater.optimizer, Muon):
            name, key = id(updater.config), updater.config.optimizer_key
            _, so_far = unused.setdefault(name, (f"{key}.args", set(updater.optimizer.unused)))
            so_far &= set(updater.optimizer.unused)  # in place
            has_matrix = bool(updater.optimizer.param_groups[0]["params"])
            idle[name] = "" if has_matrix else idle.get(name, key)
    for key, patterns in unused.values():
        for pattern in sorted(patterns):
            raise InputError(
                key,
                f"the pattern {pattern!r}, which fits the name of no parameter",
                "patterns of names in the plain model, such as '0.weight' or '*.Q'",
            )
    for key in filter(None, idle.values()):
        raise InputError(
            f"{key}.factory",
            "Muon where no parameter is known to be a hidden layer's matrix",
            "weights of linear layers, of attention's projections or of convolutions without groups, before the output "
            "layer; or their names in args, as muon: ['*.weight']",
            "It would be AdamW alone.",
        )
