"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimiser with one rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdimfa.errors import InputError

if TYPE_CHECKING:
    from lowdimfa.optim import Updater

Kind = Literal["matrix", "embedding", "output", "feedback", "other"]
"""What a parameter is; `kinds_of` has the meanings."""

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_MUON = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")
_OF_ADAMW = ("lr", "weight_decay", "betas", "eps", "fused")


def kinds_of(module: nn.Module, *, head: bool = True) -> dict[str, Kind]:
    """Return what the parameters of a module are, by name.

    ``matrix``: the weight of a linear layer, of attention's projections, or of a convolution without groups.
    ``embedding``: that of an embedding. ``output``: in the head, the last matrix. ``other``: the rest, as biases, norms
    and learned positions. Blocks have a fifth kind, ``feedback``, their ``Q``.

    Parameters
    ----------
    module
        A network, or a block of one.
    head
        Whether the network's output comes from it.
    """
    found: dict[int, Kind] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                found[id(parameter)] = "embedding"  # also where a linear layer shares it
            elif _is_matrix(part, name, parameter):
                found.setdefault(id(parameter), "matrix")
    kinds: dict[str, Kind] = {name: found.get(id(one), "other") for name, one in module.named_parameters()}
    matrices = [name for name, kind in kinds.items() if kind == "matrix"]
    return kinds | ({matrices[-1]: "output"} if head and matrices else {})


def _is_matrix(part: nn.Module, name: str, parameter: Tensor) -> bool:
    if parameter.dim() < 2 or not parameter.is_floating_point():
        return False
    if isinstance(part, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    return isinstance(part, _MATRICES) and name == "weight" and getattr(part, "groups", 1) == 1


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) for hidden layers' matrices, AdamW for everything else.

    Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about 1. Its step is
    `torch.optim.Muon`'s; the kernel of a convolution is taken as the matrix ``(out, rest)``. As its authors advise,
    embeddings and the output layer are AdamW's, as are biases, norms, and all that isn't known to be a matrix. So are
    feedback weights: ``Q`` is the last layer of a readout.

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
        Of ``params`` in their order, by name: `kinds_of`. A block's updater fills it in.

    Attributes
    ----------
    unused
        Those of the patterns that name nothing here.

    Raises
    ------
    ValueError
        Kinds and parameters don't go together, or this version of torch has no Muon.
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
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon; 2.9 is the first that does")
        trained = list(params)
        if kinds is None or len(kinds) != len(trained):
            raise ValueError("kinds must name what every parameter is: lowdimfa.muon.kinds_of(model)")
        if isinstance(adamw, str) or isinstance(muon, str):
            raise ValueError("adamw and muon are lists of patterns, not text")
        if not adamw_scale > 0:
            raise ValueError(f"adamw_scale is {adamw_scale}; a number above 0 is expected")
        self.unused = tuple(
            each for each in (*adamw, *muon) if not any(_named(name, [each]) for name in kinds)
        )
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for (name, kind), one in zip(kinds.items(), trained, strict=True):
            wanted = kind == "matrix" or (one.dim() >= 2 and _named(name, muon))
            (matrices if wanted and not _named(name, adamw) else rest).append(one)
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
        self._inner()  # refuses settings that are out of bounds

    def _inner(self) -> tuple[Optimizer, Optimizer]:
        """Return Muon for its matrices as they lie flat, and AdamW for the rest, made for one step."""
        muons, adamws = self.param_groups
        flat = [one.detach().reshape(len(one), -1) for one in _with_gradients(muons)]
        rate = {"lr": adamws["lr"] * adamws["adamw_scale"]}
        none = [torch.zeros(1, 1)]
        muon = torch.optim.Muon(flat or none, **_some(muons, _OF_MUON))
        return muon, torch.optim.AdamW(adamws["params"] or none, **_some(adamws, _OF_ADAMW) | rate)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon, adamw = self._inner()
        self._step_matrices(muon)
        adamw.state = self.state
        adamw.step()
        return loss

    def _step_matrices(self, muon: Optimizer) -> None:
        matrices = _with_gradients(self.param_groups[0])
        flat = muon.param_groups[0]["params"][: len(matrices)]
        for one, row in zip(matrices, flat, strict=True):
            assert one.grad is not None
            if "momentum_buffer" not in self.state[one]:
                self.state[one]["momentum_buffer"] = torch.zeros_like(one)
            row.grad = one.grad.reshape(row.shape)
            muon.state[row]["momentum_buffer"] = self.state[one]["momentum_buffer"].reshape(row.shape)
        muon.step()
        for one, row in zip(matrices, flat, strict=True):
            _put_back(row, one)
            _put_back(muon.state[row]["momentum_buffer"], self.state[one]["momentum_buffer"])


def _put_back(flat: Tensor, value: Tensor) -> None:
    """Copy a flat view into what it is a view of, where it is none, as with channels last."""
    if flat.data_ptr() != value.data_ptr():
        value.copy_(flat.view(value.shape))


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _with_gradients(group: Mapping[str, Any]) -> list[nn.Parameter]:
    return [one for one in group["params"] if one.grad is not None]


def _some(group: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: group[name] for name in names}


def refuse_unused_patterns(updaters: Iterable[Updater]) -> None:
    """Refuse patterns that name no parameter in any of the blocks of a network.

    Raises
    ------
    InputError
        Names the pattern.
    """
    unused: dict[int, set[str]] = {}
    for updater in updaters:
        if isinstance(updater.optimizer, Muon):
            here = set(updater.optimizer.unused)
            unused[id(updater.config)] = unused.get(id(updater.config), here) & here
            where = updater.config.optimizer_key
    for pattern in sorted(set().union(*unused.values())):
        raise InputError(
            f"{where}.args",
            f"the pattern {pattern!r}, which fits the name of no parameter",
            "patterns of names in the plain model, such as '0.weight' or '*.Q'",
        )
