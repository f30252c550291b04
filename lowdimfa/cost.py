"""What a layer costs, and the cuts that share costs out evenly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lowdimfa.values import Activation, Value, Values, everywhere, opened, some_tensor, tensors_of

Balance = Literal["flops", "time"]
_Solution = tuple[float, float, tuple[int, ...]]

# Normalisation, activation and pooling count no floating-point operations, yet take time: memory limits them.
# CPUs and GPUs alike do in the order of 10 float32 operations in the time in which they move one byte.
_OPERATIONS_PER_BYTE = 10
_WARM_UP, _TIMED_RUNS = 2, 7


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count floating-point operations by torch's own formulas, and the bytes of all results that operators write.

    `torch.utils.flop_counter.FlopCounterMode` has the same sum, but follows modules with hooks of autograd, under which
    a layer can't take gradients itself.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.floating_point = 0
        self.written = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            return NotImplemented  # its operators come here one by one
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.floating_point += formula(*args, **(kwargs or {}), out_val=result)
        if not func.is_view:
            leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.written += sum(leaf.nbytes for leaf in leaves if leaf.layout == torch.strided)
        return result


def operations(module: nn.Module, x: Activation) -> float:
    """Return the cost of a forward pass in operations; a backward pass is taken to be in proportion.

    Counted, not timed, so that two processes cut a model alike. Attention and recurrent layers are counted in their plain
    form, since fused kernels differ between devices.
    """
    # The copy stands for the reading of the input, and keeps it from layers that work in place.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _unfused(), _Operations() as counted:
        _run(module, everywhere(x, Tensor.clone))
    return float(counted.floating_point + _OPERATIONS_PER_BYTE * counted.written)


_ONE_AT_A_TIME = threading.RLock()
"""The switches are the process's: of two threads one would put back what the other has set."""


@contextmanager
def _unfused() -> Iterator[None]:
    """Let built-in layers take operators that have formulas: torch has none for what whole layers are fused into."""
    # By the functions beneath torch.backends where there are any: a program may have frozen its switches.
    switches = (
        (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    )
    with _ONE_AT_A_TIME:
        before = [is_on() for is_on, _ in switches]
        try:
            for _, switch in switches:
                switch(False)
            yield
        finally:
            for (_, put_back), was_on in zip(switches, before, strict=True):
                put_back(was_on)


def seconds(module: nn.Module, x: Activation) -> float:
    """Return the median time of a forward and backward pass in training mode, in seconds; no gradient is left behind.

    Measured on ``x`` with torch's present number of threads: give it as many samples as a micro-batch of the run has.
    """
    mode = module.training
    module.train()
    try:
        return median([_timed_pass(module, x) for _ in range(_WARM_UP + _TIMED_RUNS)][_WARM_UP:])
    finally:
        module.train(mode)


def _timed_pass(module: nn.Module, x: Activation) -> float:
    with torch.enable_grad():
        leaf = everywhere(
            x, lambda tensor: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        )
        own = everywhere(leaf, Tensor.clone)  # an in-place layer may not write to a leaf
        leaves = tensors_of(opened(leaf)[0])
        sources = [source for source in (*leaves, *module.parameters()) if source.requires_grad]
        device = some_tensor(x).device
        _wait_for(device)
        start = time.perf_counter()
        outputs = [output for output in tensors_of(_run(module, own)) if output.requires_grad]
        if outputs:
            ones = [torch.ones_like(output) for output in outputs]
            torch.autograd.grad(outputs, sources, ones, allow_unused=True)
        _wait_for(device)
    return time.perf_counter() - start


def _run(module: nn.Module, x: Activation) -> Value:
    output: Value = module(x.stream, x.side) if isinstance(x, Values) else module(x)
    return output


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


COSTS: dict[Balance, Callable[[nn.Module, Activation], float]] = {"flops": operations, "time": seconds}


def cuts_between(costs: Sequence[float], starts: Sequence[int], parts: int) -> list[int]:
    """Return where parts 1, 2, … begin, as `balanced_cuts` chooses among some of the items; ``starts[0]`` is 0."""
    atoms = [sum(costs[start:stop]) for start, stop in pairwise([*starts, len(costs)])]
    return [starts[cut] for cut in balanced_cuts(atoms, parts)]


def balanced_cuts(costs: Sequence[float], parts: int) -> list[int]:
    """Cut a sequence into contiguous parts of which the costliest is as cheap as can be.

    Parameters
    ----------
    costs
        Cost of each item, none negative.
    parts
        Number of parts, at most the number of items; none is empty.

    Returns
    -------
    list of int
        Where parts 1, 2, … begin. Among equally good cuts, those that make the leading parts more equal are
        preferred, then those that come earlier.
    """
    total = [0.0, *accumulate(costs)]
    ends = range(1, len(costs) + 1)
    # best[end]: (costliest part, sum of squared costs, cuts) of the first `end` items in the parts so far
    best: dict[int, _Solution] = {end: (total[end], total[end] ** 2, ()) for end in ends}
    for part in range(1, parts):
        best = {
            end: min(_with_last(best[cut], cut, total[end] - total[cut]) for cut in range(part, end))
            for end in ends[part:]
        }
    return list(best[len(costs)][2])


def _with_last(before: _Solution, cut: int, cost: float) -> _Solution:
    costliest, squares, cuts = before
    return max(costliest, cost), squares + cost**2, (*cuts, cut)
