"""Cutting models into blocks: nothing lost, nothing changed, evenly shared, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.cost import balanced_cuts, operations
from lowdimfa.errors import InputError
from lowdimfa.models import char_transformer, cnn, mlp, resnet, vit
from lowdimfa.partitioning import BlockPlan, list_layers, partition
from lowdimfa.values import ONE

IMAGES = torch.rand(2, 1, 8, 8)
MODELS: dict[str, tuple[nn.Sequential, Tensor]] = {
    "mlp": (mlp(64, 6, 4, 3), IMAGES),
    "cnn": (cnn(1, [3, 4], 3, 8, dropout=0.5), IMAGES),
    "resnet": (resnet(1, [3, 4], 3, blocks_per_stage=1), IMAGES),
    "vit": (vit(8, 4, 1, 8, 2, 2, 3), IMAGES),
    "char_transformer": (char_transformer(5, 6, 8, 2, 2), torch.randint(0, 5, (2, 6))),
}
EXAMPLE = torch.rand(2, 4)


class Declared(nn.Module):
    """A model that lists its layers in a way of the test's choosing."""

    def __init__(self, choose: Callable[[Declared], Any] | None = None) -> None:
        super().__init__()
        self.stem, self.act, self.norm = nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)
        self.inner = nn.ModuleDict({"head": nn.Linear(6, 3)})
        self.choose = choose

    def layers(self) -> Any:
        return self.choose(self) if self.choose else [self.stem, self.act, "norm", self.inner["head"]]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner["head"](self.norm(self.act(self.stem(x))))
        return output


def run(plans: list[BlockPlan], x: Tensor) -> Tensor:
    for plan in plans:
        assert (tuple(x.shape[1:]), x.dtype) == plan.inputs[ONE]
        x = plan.build()(x)
        assert (tuple(x.shape[1:]), x.dtype) == plan.outputs[ONE]
    return x


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_cuts_are_as_even_as_the_best_of_all(costs: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))

    def costliest(cuts: tuple[int, ...]) -> int:
        return max(sum(costs[start:stop]) for start, stop in pairwise([0, *cuts, len(costs)]))

    cuts = tuple(balanced_cuts(costs, parts))
    assert len(cuts) == parts - 1
    assert all(start < stop for start, stop in pairwise([0, *cuts, len(costs)]))
    assert costliest(cuts) == min(costliest(other) for other in combinations(range(1, len(costs)), parts - 1))


@given(st.sampled_from(sorted(MODELS)), st.data())
@settings(max_examples=25)
def test_blocks_hold_all_of_the_model_and_compute_the_same(name: str, data: st.DataObject) -> None:
    model, example = MODELS[name]
    names = [layer.name for layer in list_layers(model)]
    count = st.integers(1, len(names))
    boundaries = st.lists(st.sampled_from(names[1:]), unique=True).map(
        lambda some: sorted(some, key=names.index)
    )
    plans = partition(model, data.draw(count | boundaries), example)

    model.eval()
    assert torch.equal(run(plans, example), model(example))
    modules = [plan.build() for plan in plans]
    parameters = [entry for module in modules for entry in module.named_plain_parameters()]
    assert {name: id(value) for name, value in parameters} == {n: id(p) for n, p in model.named_parameters()}
    assert len(parameters) == len(list(model.parameters()))
    assert (
        dict(pair for module in modules for pair in module.named_plain_buffers()).keys()
        == dict(model.named_buffers()).keys()
    )
    assert [key for module in modules for key in module.plain_state_dict()] == list(model.state_dict())
    assert sum(plan.parameters for plan in plans) == sum(p.numel() for p in model.parameters())
    assert sum(plan.cost_share for plan in plans) == pytest.approx(1)


def test_plain_state_goes_round_whatever_the_cut() -> None:
    torch.manual_seed(0)
    first, second = (cnn(1, [3, 4], 3, 8) for _ in range(2))
    first(IMAGES)  # moves the running statistics
    state: dict[str, Tensor] = {}
    for plan in partition(first, 3, IMAGES):
        state |= plan.build().plain_state_dict()
    for plan in partition(second, 2, IMAGES):
        plan.build().load_plain_state_dict(state)
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_a_tied_tensor_of_one_block_is_kept_once() -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    first, second = (partition(tied(), 1, EXAMPLE)[0] for _ in range(2))
    state = first.build().plain_state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.bias"]
    second.build().load_plain_state_dict(state)
    assert torch.equal(second.build()(EXAMPLE), first.build()(EXAMPLE))


@pytest.mark.parametrize("balance", ["flops", "time"])
def test_partitioning_leaves_no_trace(balance: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 3))
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example, random = torch.randn(2, 4), torch.get_rng_state()
    kept = example.clone()
    partition(model, 2, example, balance)
    assert [module.training for module in model] == [False, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(kept, example)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_automatic_cuts_come_only_before_layers_with_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3), nn.Tanh())
    plans = partition(model, 2, EXAMPLE)
    assert [[layer.name for layer in plan.layers] for plan in plans] == [["0", "1", "2", "3"], ["4", "5"]]
    assert [plan.name for plan in plans] == ["0", "4"]
    explicit = partition(model, ["2", "5"], EXAMPLE)
    assert [plan.name for plan in explicit] == ["0", "2", "5"]


def test_equal_layers_are_shared_out_evenly() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    assert [len(plan.layers) for plan in partition(model, 3, EXAMPLE)] == [2, 2, 2]
    heavy = nn.Sequential(nn.Linear(4, 400), nn.Linear(400, 4), *(nn.Linear(4, 4) for _ in range(3)))
    assert [plan.name for plan in partition(heavy, 2, EXAMPLE)] == ["0", "1"]


def test_cost_counts_operations_and_bytes() -> None:
    x = torch.rand(2, 8)
    read_and_written = 10 * 4 * (2 * 8 + 2 * 16)
    assert operations(nn.Linear(8, 16, bias=False), x) == 2 * 2 * 8 * 16 + read_and_written
    assert operations(nn.Flatten(), x) == 10 * 4 * 2 * 8  # a view writes nothing


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_built_in_transformer_layers_are_counted(whole: bool, frozen: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = (nn.TransformerEncoder(layer, 1) if whole else layer).eval().requires_grad_(not frozen)
    with torch.no_grad():
        assert operations(module, torch.rand(2, 5, 8)) > 2 * 2 * 5 * (4 * 8 * 8 + 2 * 8 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_are_counted(layer: type[nn.RNNBase], gates: int) -> None:
    assert operations(layer(8, 256), torch.rand(5, 2, 8)) > 2 * 5 * 2 * gates * 256 * (8 + 256)


def test_a_list_of_modules_is_numbered() -> None:
    assert [layer.name for layer in list_layers([nn.Linear(4, 3), nn.ReLU()])] == ["0", "1"]


def test_declared_layers_have_the_names_of_the_model() -> None:
    model = Declared()
    plans = partition(model, ["norm"], EXAMPLE)
    assert [[layer.name for layer in plan.layers] for plan in plans] == [
        ["stem", "act"],
        ["norm", "inner.head"],
    ]
    assert list(plans[1].build().plain_state_dict()) == [
        key for key in model.state_dict() if not key.startswith("stem")
    ]


def refused(model: object, blocks: Any, *words: str, example: Tensor = EXAMPLE) -> None:
    with pytest.raises(InputError) as caught:
        partition(model, blocks, example)
    for word in words:
        assert word in caught.value.message


def test_models_whose_layers_cannot_be_told_are_refused() -> None:
    refused(nn.Linear(4, 3), 1, "model.factory", "Linear", "'layers'")
    refused([nn.Linear(4, 3), "relu"], 1, "model.factory", "a list of modules")
    refused(nn.Sequential(), 1, "without layers")
    refused(Declared(lambda model: 3), 1, "'layers' is a int")
    refused(Declared(lambda model: ["stem", "inner.haed"]), 1, "inner.haed", "'inner.head'")
    refused(Declared(lambda model: [model.stem, nn.ReLU()]), 1, "ReLU()", "attribute of the model")


def test_no_layer_is_dropped() -> None:
    with pytest.raises(InputError, match=r"leave out norm\.weight, norm\.bias, inner\.head\.weight"):
        list_layers(Declared(lambda model: ["stem", "act"]))
    with pytest.raises(InputError, match="running_mean"):
        list_layers(Declared(lambda model: ["stem", "act", "inner"]))
    refused(Declared(lambda model: ["stem", "norm", "inner.head"]), 1, "don't compute its forward")


def test_a_dropout_left_out_is_noticed() -> None:
    class WithDropout(Declared):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), training=self.training)

    refused(WithDropout(), 2, "don't compute its forward")


def test_layers_that_do_not_fit_are_both_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(5, 3))
    refused(model, 2, "layer '1'", "layer '0'", "(2, 6)", "RuntimeError")
    refused(model, 2, "layer '0'", "the example input", "(2, 9)", example=torch.rand(2, 9))
    refused(nn.Sequential(nn.GRU(4, 3)), 1, "layer '0'", "tuple", "one tensor")
    refused(nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), 1, "layer '1'", "(6,)", "2 samples")


def test_impossible_cuts_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    refused(model, 3, "model.blocks: found 3", "from 1 to 2")
    refused(model, 0, "model.blocks: found 0")
    refused(model, ["2", "1"], "model.blocks", "in the order of the layers")
    refused(model, ["0"], "model.blocks", "after '0'")
    refused(Declared(), ["nrm"], "model.blocks", "'nrm'", "such as 'norm'")


def test_blocks_that_would_share_a_parameter_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    refused(model, 2, "model.blocks", "0.weight in block 0", "2.weight")
    assert partition(model, 1, EXAMPLE)[0].parameters == 16 + 4 + 4


def test_a_state_that_does_not_fit_is_refused() -> None:
    block = partition(nn.Sequential(nn.Linear(4, 4)), 1, EXAMPLE)[0].build()
    with pytest.raises(InputError, match=r"no 0\.bias"):
        block.load_plain_state_dict({"0.weight": torch.zeros(4, 4)})
    with pytest.raises(InputError, match="size mismatch"):
        block.load_plain_state_dict({"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(4)})


def test_an_embedding_stays_with_what_follows_unless_more_blocks_are_asked_for() -> None:
    model, example = (
        char_transformer(vocabulary=5, context=4, width=8, depth=2, heads=2),
        torch.zeros(2, 4).long(),
    )
    assert [plan.name for plan in partition(model, 3, example)] == ["0", "2", "3"]
    assert [plan.name for plan in partition(model, 4, example)] == ["0", "1", "2", "3"]


def test_blocks_whose_parameters_lie_in_one_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.data)  # as some libraries tie weights
    refused(model, 2, "0.weight in block 0, which block 1 shares as 2.weight", example=torch.randn(2, 4))
    partition(model, 1, torch.randn(2, 4))
    flat = torch.randn(32)  # parts of one memory that don't overlap are no ties
    for layer, part in zip((model[0], model[2]), flat.chunk(2), strict=True):
        layer.weight = nn.Parameter(part.view(4, 4))
    partition(model, 2, torch.randn(2, 4))
