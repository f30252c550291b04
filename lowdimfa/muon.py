"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimiser with one rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdimfa.errors import InputError
from lowdimfa.kinds import HIDDEN

if TYPE_CHECKING:
    from lowdimfa.optim import Updater

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial that drives singular values towards 1, by Jordan et al."""


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) for hidden layers' matrices, AdamW for everything else.

    Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about 1. Its step is that of
    `torch.optim.Muon`, but for the precision on a processor: torch's iterates in bfloat16, which one without such
    instructions does tens of times slower than in single precision. The kernel of a convolution is taken as the matrix
    ``(out, rest)``. As its authors advise, embeddings and the output layer are AdamW's, as are biases, norms, and all
    that isn't known to be a matrix. So are feedback weights: ``Q`` is the last layer of a readout.

    There is one rate, and so one schedule, for both: ``adjust_lr_fn="match_rms_adamw"`` gives Muon's steps the size of
    AdamW's (Liu et al., 2025).

    Parameters
    ----------
    params
        What is trained.
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
        Of ``params`` in their order, by name: `lowdimfa.kinds.kinds_of`. A block's updater fills it in.

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
        params: Iterable[nn.Parameter],
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
        trained = list(params)
        if kinds is None or len(kinds) != len(trained):
            raise ValueError("kinds must name what every parameter is: lowdimfa.kinds.kinds_of(model)")
        if isinstance(adamw, str) or isinstance(muon, str):
            raise ValueError("adamw and muon are lists of patterns, not text")
        if not adamw_scale > 0:
            raise ValueError(f"adamw_scale is {adamw_scale}; a number above 0 is expected")
        if not 0 <= momentum < 1 or not 1 <= ns_steps < 100:
            raise ValueError(
                f"momentum is {momentum} and ns_steps {ns_steps}; from 0 to below 1, and from 1 to 99"
            )
        if adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn is {adjust_lr_fn!r}; original or match_rms_adamw is expected")
        self.unused = tuple(
            each for each in (*adamw, *muon) if not any(_named(name, [each]) for name in kinds)
        )
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for (name, kind), one in zip(kinds.items(), trained, strict=True):
            wanted = kind in HIDDEN or (one.dim() >= 2 and _named(name, muon))
            (matrices if wanted and not _named(name, adamw) else rest).append(one)
        stored = dict(zip(map(id, trained), kinds.values(), strict=True))
        self._transposed = [stored[id(one)] == "transposed" for one in matrices]
        given: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
        }
        given |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "adamw_scale": adamw_scale}
        given |= {"betas": tuple(betas), "eps": eps, "fused": fused}
        # Both groups are always there, so that a schedule's list of rates, and a checkpoint's groups, fit every block.
        super().__init__([{"params": matrices}, {"params": rest}], given)
        self._adamw()  # refuses what is out of bounds there

    def _adamw(self) -> Optimizer:
        """Return AdamW for what is its own, made for one step, with the state kept here."""
        group = self.param_groups[1]
        settings = {name: group[name] for name in ("weight_decay", "betas", "eps", "fused")}
        made = torch.optim.AdamW(
            group["params"] or [torch.zeros(1)], lr=group["lr"] * group["adamw_scale"], **settings
        )
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
        for group, needed in zip(self.param_groups, ("momentum_buffer", "exp_avg"), strict=True):
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
        group = self.param_groups[0]
        for matrix, transposed in zip(group["params"], self._transposed, strict=True):
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


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


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
