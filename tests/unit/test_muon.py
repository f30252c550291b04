"""Muon for matrices and AdamW for the rest, against torch's own, and what goes to which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa import muon
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.kinds import kinds_of
from lowdimfa.models import char_transformer, cnn, mlp, vit
from lowdimfa.muon import Muon
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.optim import Updater

STEPS = 6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def update(factory: str = "lowdimfa.muon:Muon", **args: Any) -> UpdateConfig:
    return UpdateConfig(
        FactoryConfig(factory, {"lr": 0.01} | args),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.02}),
    )


def trained(shapes: dict[str, tuple[int, ...]], config: UpdateConfig, *, last: bool = False) -> list[Tensor]:
    """Return drawn parameters after some steps on drawn gradients; those of four dimensions maybe with channels last."""
    layout = torch.channels_last if last else torch.contiguous_format
    drawn = {
        name: nn.Parameter(normal(*shape, seed=len(name)).contiguous(memory_format=layout))
        for name, shape in shapes.items()
    }
    kinds = {name: name.split(".")[0] for name in shapes}
    updater = Updater(drawn, [], config, STEPS, kinds=kinds)
    for step in range(STEPS):
        for index, one in enumerate(drawn.values()):
            one.grad = normal(*one.shape, seed=100 * step + index).contiguous(memory_format=layout)
        updater.step()
    return [one.detach() for one in drawn.values()]


@pytest.mark.parametrize("args", [{}, {"adjust_lr_fn": "original", "nesterov": False, "ns_steps": 3}])
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_matrices_take_torchs_own_steps(
    precision: torch.dtype, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit in torch's precision, which is coarser than the processor's own."""
    monkeypatch.setattr(muon, "_precision", lambda device: precision)
    shapes: dict[str, tuple[int, ...]] = {"matrix.a": (6, 4), "matrix.bc": (3, 8), "matrix.def": (5, 5)}
    settings = {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1} | args
    ours, theirs = (
        trained(shapes, UpdateConfig(FactoryConfig(name, settings)))
        for name in ("lowdimfa.muon:Muon", "torch.optim.Muon")
    )
    for one, other in zip(ours, theirs, strict=True):
        if precision == torch.bfloat16:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["other", "embedding", "output", "feedback"])
def test_everything_else_takes_adamws_steps(kind: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"{kind}.a": (6, 4), f"{kind}.bc": (5,)}
    ours, theirs = (trained(shapes, update(*name)) for name in ((), ("torch.optim.AdamW",)))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_schedule_moves_both_rates_and_adamws_is_a_multiple() -> None:
    shapes: dict[str, tuple[int, ...]] = {"other.a": (6, 4), "other.bc": (5,)}
    scaled = trained(shapes, update(adamw_scale=0.5))
    halved = UpdateConfig(
        FactoryConfig("torch.optim.AdamW", {"lr": 0.005}),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.01}),
    )
    for one, other in zip(scaled, trained(shapes, halved), strict=True):
        torch.testing.assert_close(one, other)
    still = UpdateConfig(FactoryConfig("lowdimfa.muon:Muon", {"lr": 0.01}))
    matrix: dict[str, tuple[int, ...]] = {"matrix.a": (6, 4)}
    assert not torch.allclose(trained(matrix, still)[0], trained(matrix, update())[0])


def test_a_kernel_is_the_matrix_of_its_rows_wherever_its_channels_lie() -> None:
    plain = UpdateConfig(FactoryConfig("lowdimfa.muon:Muon", {"lr": 0.01}))
    kernel: dict[str, tuple[int, ...]] = {"matrix.k": (4, 3, 3, 3)}
    contiguous, last = (trained(kernel, plain, last=last)[0] for last in (False, True))
    assert torch.equal(contiguous, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    flat = trained({"matrix.k": (4, 27)}, plain)[0]
    assert torch.equal(contiguous.reshape(4, 27), flat)


def test_updates_have_singular_values_of_about_one() -> None:
    before = nn.Parameter(normal(16, 16, seed=0))
    matrix = nn.Parameter(before.detach().clone())
    optimizer = Muon([matrix], lr=1.0, weight_decay=0.0, adjust_lr_fn="original", kinds={"w": "matrix"})
    matrix.grad = normal(16, 2, seed=1) @ normal(2, 16, seed=2) + 0.1 * normal(16, 16, seed=3)
    optimizer.step()
    values = torch.linalg.svdvals((before - matrix).detach())
    assert values.max() < 1.5
    assert values.median() > 0.5
    assert torch.linalg.svdvals(matrix.grad).median() < 0.1 * torch.linalg.svdvals(matrix.grad).max()


def test_kinds() -> None:
    assert kinds_of(mlp(6, 5, 3, 4)) == {
        "0.1.weight": "matrix",
        "0.1.bias": "other",
        "1.0.weight": "matrix",
        "1.0.bias": "other",
        "2.0.weight": "output",
        "2.0.bias": "other",
    }
    assert "output" not in kinds_of(mlp(6, 5, 3, 4), head=False).values()
    networks = [cnn(1, (4, 8), 10, 8), vit(8, 4, 1, 8, 1, 2, 10), char_transformer(11, 6, 8, 1, 2)]
    for network in networks:
        kinds = kinds_of(network)
        parameters = dict(network.named_parameters())
        assert all(parameters[name].dim() >= 2 for name, kind in kinds.items() if kind == "matrix")
        assert [name for name, kind in kinds.items() if kind == "output"] == [
            [name for name, one in parameters.items() if one.dim() > 1][-1]
        ]
    assert kinds_of(networks[1])["0.positions"] == "other"
    embedding = kinds_of(networks[2].get_submodule("0"), head=False)
    assert embedding["tokens.weight"] == "embedding"
    assert "matrix" not in embedding.values()


def test_kinds_of_odd_layers() -> None:
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    tied[1].weight = tied[0].weight
    assert kinds_of(tied) == {"0.weight": "embedding"}
    between = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    between[2].weight = between[0].weight
    assert kinds_of(between)["1.weight"] == "matrix"
    assert kinds_of(nn.Conv2d(4, 4, 3, groups=4), head=False)["weight"] == "other"
    attention = kinds_of(nn.MultiheadAttention(4, 2), head=False)
    assert [name for name, kind in attention.items() if kind == "matrix"] == [
        "in_proj_weight",
        "out_proj.weight",
    ]
    assert set(kinds_of(nn.LSTM(3, 2), head=False).values()) == {"other"}


def network(model: nn.Sequential | None = None, *, form: str = "broadcast", **args: Any) -> DecoupledNetwork:
    torch.manual_seed(0)
    return decouple(
        model or mlp(6, 16, 4, 3),
        normal(2, 6, seed=0),
        blocks=3,
        total_steps=40,
        feedback=FeedbackConfig(form=form),  # type: ignore[arg-type]
        training=TrainingConfig(
            40, update=UpdateConfig(FactoryConfig("lowdimfa.muon:Muon", {"lr": 0.05} | args))
        ),
    )


def muons(found: DecoupledNetwork) -> set[str]:
    """Return the names of what Muon has."""
    names = {id(one): name for stage in found.stages for name, one in stage.updater.parameters.items()}
    optimizers = [stage.updater.optimizer for stage in found.stages]
    assert all(isinstance(one, Muon) for one in optimizers)
    return {names[id(one)] for each in optimizers if each for one in each.param_groups[0]["params"]}


@pytest.mark.parametrize("form", ["broadcast", "backprop", "local"])
def test_blocks_learn_by_it_in_every_form(form: str) -> None:
    blocks = network(form=form)
    assert muons(blocks) == {"0.1.weight", "1.0.weight", "2.0.weight"}
    inputs = normal(64, 6, seed=1)
    targets = (inputs[:, :3] + inputs[:, 3:]).argmax(-1)
    losses = [blocks.train_step(step, [(inputs, targets)]).loss for step in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_users_name_what_is_whose() -> None:
    assert muons(network(adamw=["0.*"])) == {"1.0.weight", "2.0.weight"}
    with_feedback = muons(network(muon=["*.Q", "3.0.weight"]))
    assert len([name for name in with_feedback if name.endswith(".Q")]) == 2
    assert "3.0.weight" in with_feedback
    assert muons(network(muon=["3.*"], adamw=["3.*", "0.1.weight"])) == {"1.0.weight", "2.0.weight"}


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.optimizer\.args: found the pattern 'embedding\.\*'"):
        network(adamw=["0.*", "embedding.*"])
    own = {
        2: UpdateConfig(
            FactoryConfig("lowdimfa.muon:Muon", {"adamw": ["0.*"]}, "train.per_block.2.optimizer")
        )
    }
    training = TrainingConfig(40, update=update(adamw=["0.*"]), per_block=own)
    with pytest.raises(InputError, match=r"train\.per_block\.2\.optimizer\.args: found the pattern '0\.\*'"):
        decouple(mlp(6, 16, 4, 3), normal(2, 6, seed=0), blocks=3, total_steps=40, training=training)
    with pytest.raises(InputError, match=r"the pattern '9\.\*'"):
        network(muon=["9.*"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"adamw": "0.*"}, "lists of patterns"),
        ({"adamw_scale": 0.0}, "adamw_scale is 0.0"),
        ({"lr": -1.0}, "rate"),
        ({"betas": [0.9, 2.0]}, "beta"),
        ({"adjust_lr_fn": "none"}, "is expected"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"ns_steps": 0}, "ns_steps 0"),
    ],
)
def test_bad_settings_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(**args)


def test_without_kinds_it_says_where_these_come_from() -> None:
    with pytest.raises(ValueError, match="kinds_of"):
        Muon([nn.Parameter(torch.ones(2, 2))])


@pytest.mark.parametrize("first", [True, False])
def test_a_state_under_other_patterns_is_refused_when_it_is_loaded(first: bool) -> None:
    """AdamW would fail in its first step, and Muon start its momentum anew."""
    layer = nn.Linear(3, 3)
    parameters = dict(layer.named_parameters())

    def updater(adamw: list[str]) -> Updater:
        config = UpdateConfig(FactoryConfig("lowdimfa.muon:Muon", {"adamw": adamw}))
        return Updater(parameters, [], config, 2, kinds=kinds_of(layer, head=False))

    one, other = updater([]), updater(["weight"])
    if not first:
        one, other = other, one
    layer(torch.ones(1, 3)).sum().backward()
    one.step()
    with pytest.raises(ValueError, match="keep the patterns adamw and muon"):
        other.load(*one.state())
    one.load(*one.state())


def test_gpt2s_own_linear_layers_are_matrices_the_other_way_round() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(nn.Linear(6, 4), conv1d(12, 4), nn.ReLU(), conv1d(3, 12))
    assert [kind for kind in kinds_of(model).values() if kind != "other"] == [
        "matrix",
        "transposed",
        "output",
    ]
    weight = nn.Parameter(normal(4, 12, seed=0))
    settings: dict[str, Any] = {"lr": 0.1, "adjust_lr_fn": "original"}
    one = nn.Parameter(weight.detach().clone())
    other = nn.Parameter(weight.detach().t().clone())
    one.grad, other.grad = normal(4, 12, seed=1), normal(4, 12, seed=1).t()
    Muon([one], **settings, kinds={"w": "transposed"}).step()
    Muon([other], **settings, kinds={"w": "matrix"}).step()
    assert not torch.equal(one, weight)
    torch.testing.assert_close(one.t(), other)


def test_a_muon_without_a_matrix_is_refused() -> None:
    class Odd(nn.Linear):
        """Its matrix has a name that says nothing."""

        def __init__(self) -> None:
            super().__init__(6, 6)
            self.odd = self.weight
            del self.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(inputs, self.odd, self.bias)

    model = nn.Sequential(Odd(), nn.ReLU(), Odd(), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(
        InputError, match=r"train\.optimizer\.factory: found Muon where no parameter is known"
    ):
        network(model)
    assert muons(network(model, muon=["*.odd"])) == {"0.odd", "2.odd"}
