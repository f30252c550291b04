"""What people should know of a planned run before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.services.run.plan import RunPlan


def aligns(network: NetworkPlan) -> bool:
    """Whether updates can be compared with true gradients, which takes all blocks in one process."""
    learning = any(block.learns for block in network.blocks[:-1])
    return network.feedback.form == "broadcast" and network.outline is None and learning


def notes(plan: RunPlan) -> Iterator[str]:
    """Yield warnings."""
    network, specification = plan.network, plan.specification
    yield from network.notices
    if network.note:
        yield network.note
    if network.outline is not None and specification.run.alignment_every:
        yield "run.alignment_every is left out: it takes a process that holds the whole network, which is too large"
    if network.outline is not None and specification.model.balance == "time":
        yield "model.balance: time goes by layers alone: whole blocks aren't timed where the network is so large"
