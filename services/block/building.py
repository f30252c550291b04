"""What a block's process makes of its job: its data, its layers, what it says of itself, the rules of its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from lowdimfa.block import Block
from lowdimfa.build import build_block, build_head
from lowdimfa.data.reading import Reader
from lowdimfa.encoding import State
from lowdimfa.feedback.making import broadcast_width
from lowdimfa.feedback.source import sends_projection
from lowdimfa.formats import Format
from lowdimfa.head import Head
from lowdimfa.services.block.devices import block_device
from lowdimfa.services.block.instructions import Policy
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.rpc.handshake import Hello, SampleType
from lowdimfa.services.rpc.tensors import dtype_name
from lowdimfa.services.rpc.topology import Topology
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.data import load_dataset, read_ahead
from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.services.run.state import load_stage
from lowdimfa.services.run.training import batch_order
from lowdimfa.services.spec import Specification
from lowdimfa.services.stream.limits import ErrorLimit, SampleLimit
from lowdimfa.stage import Stage
from lowdimfa.values import Types
from lowdimfa.version import VERSION


@dataclass(frozen=True)
class Checkpointed:
    """A block's state in the checkpoint of a step, or as it was drawn before the first step."""

    step: int | None


@dataclass(frozen=True)
class Own:
    """The state that the block itself has after its last applied step; what it had begun since is dropped."""


Source = Checkpointed | Snapshot | Own
"""Where a block takes its state from."""


def build_stage(job: BlockJob, network: NetworkPlan, data: Reader | None) -> Block | Head:
    """Build the block as it is before the first step, on its device."""
    plan = network.blocks[job.index]
    device = block_device(job.parsed().placement.gpus_per_block)
    if plan.index < len(network.blocks) - 1:
        return build_block(plan, network.shape, network.feedback, network.training, device)
    assert data is not None, "the head draws targets"
    return build_head(plan, network.shape, network.feedback, network.training, data.dataset.task, device)


def restore(stage: Stage, source: Checkpointed | Snapshot | State, run_dir: str, missed: int) -> None:
    """Give a newly built stage its state, and move its schedule on to where the run is.

    Parameters
    ----------
    stage
        As it was drawn.
    source
        Where the state is, or the state itself.
    run_dir
        Of the run, for its checkpoints.
    missed
        Steps of the run that the state lacks. Their updates are lost; but what learning rate is due the run's steps say,
        not those of one block.

    Raises
    ------
    InputError
        The checkpoint is missing or damaged.
    """
    match source:
        case State(tensors, scalars):
            stage.load(tensors, scalars)
        case Snapshot():
            source.restore(stage)
        case Checkpointed() if source.step is not None:
            # The trainer has verified all blocks' files; each block looks once more at those that it reads.
            load_stage(stage, CheckpointStore(run_dir).load(source.step, lazily=True))
    for _ in range(missed):
        stage.updater.advance()


def draw_data(job: BlockJob, network: NetworkPlan) -> Reader | None:
    """Return the data of the first block, of the head, and of those whose layers name inputs of the data."""
    if job.index not in (0, len(network.blocks) - 1) and not network.blocks[job.index].side:
        return None
    specification = job.parsed()
    dataset = load_dataset(specification)
    order = batch_order(specification, dataset.train)
    order.evaluation_size = job.evaluation_size
    reader = Reader(dataset, order, job.example.types)
    head, plan = job.index == len(network.blocks) - 1, network.blocks[job.index]
    return read_ahead(
        specification,
        reader,
        job.total_steps,
        inputs=job.index == 0 or bool(plan.side),
        targets=head,
        rank=job.rank,
        replicas=specification.replicas[job.index],
        whole_steps=head,
    )


def describe(job: BlockJob, network: NetworkPlan, data: Reader | None) -> Hello:
    """Return what the block says of itself to its neighbours."""
    plan = network.blocks[job.index]
    return Hello(
        software=VERSION,
        torch=torch.__version__,
        run=job.run,
        block=plan.index,
        role="head" if plan.index == len(network.blocks) - 1 else "block",
        input=_sample_types(plan.inputs, network.forms(plan.index - 1) if plan.index else ()),
        output=_sample_types(plan.outputs, network.forms(plan.index)),
        error_dim=broadcast_width(network.shape, network.feedback),
        data="" if data is None else data.fingerprint(),
    )


def sample_limits(job: BlockJob, network: NetworkPlan) -> tuple[SampleLimit, SampleLimit]:
    """Return the activations that the block accepts, and those that it sends."""
    plan, samples = network.blocks[job.index], job.evaluation_size  # at least those of a micro-batch
    arriving, leaving = (tuple(types.values()) for types in (plan.inputs, plan.outputs))
    before = network.forms(job.index - 1) if job.index else ()
    return SampleLimit(arriving, samples, before), SampleLimit(leaving, samples, network.forms(job.index))


def error_limit(network: NetworkPlan) -> ErrorLimit:
    """Return the errors that a block accepts, with the width of what they are of where ``P`` may come with them."""
    shape, feedback = network.shape, network.feedback
    width = shape.task_dim if sends_projection(shape, feedback) else None
    dtype = torch.bfloat16 if feedback.broadcast == "bf16" else torch.float32
    return ErrorLimit(broadcast_width(shape, feedback), width, dtype)


def make_topology(specification: Specification, network: NetworkPlan) -> Topology:
    """Return who is who among the workers of a run."""
    learning = [plan.index for plan in network.blocks if plan.learns]
    return Topology(specification.replicas, specification.train.microbatches, learning)


def windows_of(specification: Specification) -> list[int]:
    """Return the micro-batches that may be in flight in one replica of each block: its share of the window."""
    window = specification.train.effective_window
    return [-(-window // replicas) for replicas in specification.replicas]


def make_policy(job: BlockJob, network: NetworkPlan) -> Policy:
    """Return the rules of the block's schedule."""
    specification = job.parsed()
    train = specification.train
    return Policy(
        first=job.index == 0,
        head=job.index == len(network.blocks) - 1,
        microbatches=train.microbatches,
        window=windows_of(specification)[job.index],
        staleness=train.staleness,
        probe_every=network.feedback.probe_interval,
        replicas=specification.replicas[job.index],
        rank=job.rank,
        learns=network.blocks[job.index].learns,
    )


def _sample_types(types: Types, forms: Sequence[Format | None]) -> tuple[SampleType, ...]:
    found = []
    for (name, kind), form in zip_longest(types.items(), forms):
        packed = form is not None and form.takes(kind.dtype)
        written = f"{dtype_name(kind.dtype)} as {form}" if packed else dtype_name(kind.dtype)
        found.append(SampleType(written, kind.shape, name))
    return tuple(found)
