"""What isn't free to change in a run, since other weights would be learned."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from lowdimfa.losses import LOSSES, counts
from lowdimfa.measure import make_step
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.profile import make_bench
from lowdimfa.services.run.rehearsal import SAMPLES
from lowdimfa.services.spec.learning import RankSection
from lowdimfa.stage import Stage
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Activation, everywhere, travelling

_LOOKED_AT = 1024
"""Items of a data set, which may be costly to read, whose targets are looked at."""

_SAME = 0.02
"""Part of the largest output by which one may differ where it is computed with fewer others, in bfloat16 too."""


def not_free(plan: RunPlan) -> dict[str, str]:
    """Return what changes what this network learns, though not what most do, by name, and why."""
    train = plan.specification.train
    found: dict[str, str] = {}
    if train.per_block:
        found["cut"] = "train.per_block says what single blocks have"
    if train.staleness:
        found["window"] = "with staleness, forwards that wait for it see newer weights"
    if why := _changed_by_a_forward(plan):
        return found | {"microbatches": why, "replicas": why}
    why = _learns_from_parts(plan)
    return found | ({"microbatches": why} if why else {})


def _learns_from_parts(plan: RunPlan) -> str:
    """Return why parts of a batch add up to something else than the whole, or nothing."""
    train, feedback = plan.specification.train, plan.network.feedback
    if isinstance(train.activations, RankSection):
        return "activations of a low rank have the factors of their micro-batch"
    if train.loss not in ("auto", *LOSSES):
        return "a loss of one's own may be another function of parts than of the whole batch"
    if feedback.q_rule == "readout":
        if _has_ignored(plan):
            return "a readout learns from each micro-batch by how many of its targets count"
        if plan.order.last_batch_size % train.microbatches:
            return "a readout weighs micro-batches alike, and an epoch's last batch has uneven ones"
    built_in = {"auto", *Q_RULES.built_in, *P_RULES.built_in} - {"probed"}
    for rule in (feedback.q_rule, feedback.p_rule):
        name = rule if isinstance(rule, str) else rule.name
        if name not in built_in:
            return f"the rule {name} may learn from each micro-batch by itself"
    return ""


def _has_ignored(plan: RunPlan) -> bool:
    """Whether some of the data's targets don't count."""
    training = plan.network.training
    counted = map(
        counts(training.loss, plan.dataset.task, training.ignore_index), plan.reader.known_targets(_LOOKED_AT)
    )
    return any(one is not None and not bool(one.all()) for one in counted)


def _changed_by_a_forward(plan: RunPlan) -> str:
    """Return why it matters into how many forwards a batch is cut, or nothing."""
    modules = [layer.module for block in plan.network.blocks for layer in block.layers]
    if any(
        isinstance(one, nn.modules.batchnorm._BatchNorm) for module in modules for one in module.modules()
    ):
        return "layers take their statistics from each micro-batch"
    if plan.network.outline is not None:
        kept = any(True for module in modules for _ in module.buffers())
        return (
            "layers have buffers, and the network is too large to see here whether they change"
            if kept
            else ""
        )
    try:
        if (mixing := _first_mixing(plan)) is not None:
            return f"block {mixing} mixes the samples of a micro-batch"
        name = _first_changed(plan)
    # The user's own layers; for a GPU that isn't here they may fail, too.
    except (Exception, SystemExit) as error:
        return f"whether a forward changes a buffer can't be seen here ({type(error).__name__})"
    return f"each forward in training changes {name}" if name else ""


def _first_mixing(plan: RunPlan) -> int | None:
    """Return the first block whose outputs for some samples depend on which others there are, by copies of it."""
    network = plan.network
    training = replace(network.training, compile=False, activations="fp32")
    bench = make_bench(plan.specification, network.feedback, training, plan.reader).with_samples(SAMPLES)
    inputs = bench.batches[0][0]
    half = len(bench.batches[0][1]) // 2
    if not half:
        return None
    with bench.computing(derive_seed(plan.specification.train.seed, "tuning")):
        learning, head = bench.stages(network.blocks)
        for index, stage in enumerate((*learning, head)):
            whole = stage.evaluate(inputs)
            part = stage.evaluate(everywhere(inputs, lambda tensor: tensor[:half]))
            pairs = zip(_numbers(whole), _numbers(part), strict=True)
            if any(bool((one[:half] - other).abs().max() > _SAME * one.abs().max()) for one, other in pairs):
                return index
            inputs = whole
    return None


def _numbers(activation: Activation) -> list[Tensor]:
    return [tensor.float() for tensor in travelling(activation) if tensor.is_floating_point()]


def _first_changed(plan: RunPlan) -> str | None:
    """Make a step on copies, and return the name of a buffer or frozen parameter that it changed."""
    specification, network = plan.specification, plan.network
    training = replace(network.training, compile=False)
    bench = make_bench(specification, network.feedback, training, plan.reader).with_samples(SAMPLES)
    with bench.computing(derive_seed(specification.train.seed, "tuning")):
        learning, head = bench.stages(network.blocks)
        stages: list[Stage] = [*learning, head]
        before = [{name: value.clone() for name, value in _not_learned(stage).items()} for stage in stages]
        make_step(learning, head, network.feedback, bench.batches)
    for stage, kept in zip(stages, before, strict=True):
        for name, value in _not_learned(stage).items():
            if name not in kept or not value.equal(kept[name]):
                return name
    return None


def _not_learned(stage: Stage) -> dict[str, Tensor]:
    frozen = ((name, one) for name, one in stage.module.named_plain_parameters() if not one.requires_grad)
    return {name: value.detach() for name, value in (*stage.module.named_plain_buffers(), *frozen)}
