"""Some layers of a network, built alone: their bits are those of a whole build, and no other large tensor is there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lowdimfa.emptied import UnfitError, tensors_of
from lowdimfa.encoding import same_bits
from lowdimfa.generators import reproducible
from lowdimfa.layers import as_module, list_layers
from lowdimfa.models import char_transformer, cnn, mlp, resnet, vit
from lowdimfa.sparse import Outline, outline
from lowdimfa.trace import trace

SMALLEST = 256


def seeded(factory: Callable[[], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with reproducible(3):
            return as_module(factory())

    return make


def outlined(factory: Callable[[], Any]) -> Outline:
    return outline(seeded(factory), SMALLEST)


class Tables(nn.Module):
    """What transformers keep beside weights, and a list of numbers that were read from a tensor."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / 8)
        self.register_buffer("mask", torch.tril(torch.ones(width, width)))
        self.register_buffer("places", torch.arange(width * 10))
        self.register_buffer("angles", 1 / 10000 ** (torch.arange(0, width * 4, 2).float() / width))
        self.loose = self.weight.detach().norm(dim=1)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 12)]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class LikeTorchvision(nn.Module):
    """A network whose weights are drawn again at the end, as torchvision's are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.features = nn.Sequential(
            nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Sequential(nn.Linear(128, 64), nn.Dropout(), nn.Linear(64, 10))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.features[0].weight)

    def layers(self) -> list[nn.Module]:
        return [self.stem, self.features, self.classifier]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.stem(x)))


def encoder() -> nn.Module:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 4).layers
    return nn.Sequential(nn.Linear(32, 64), *layers, nn.Linear(64, 10))


def drawn_by_hand() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for layer in model[:2]:
        nn.init.orthogonal_(layer.weight)
        nn.init.trunc_normal_(layer.bias)
    model[2].weight.data = model[0].weight.data * 0.5
    model[3].load_state_dict(model[1].state_dict())
    model[1].weight.data.mul_(2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model[0].weight.data.add_(torch.randn(64, 64))
    generator = torch.Generator().manual_seed(4)
    for layer in reversed(model):
        layer.weight.data.add_(torch.randn(64, 64, generator=generator))
        nn.init.uniform_(layer.bias, generator=generator)
    with torch.no_grad():
        model[1].weight[3].normal_()
        model[2].weight.copy_(torch.from_numpy(numpy.random.randn(64, 64)))
    return model.to(torch.float64)


def normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(64, 64)),
        parametrizations.weight_norm(nn.Linear(64, 32)),
        nn.utils.spectral_norm(nn.Linear(32, 32)),
    )


def by_rejection() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    for layer in model:
        nn.init.trunc_normal_(layer.weight, a=-0.5, b=1.5)
    return model


def of_transformers(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    match kind:
        case "gpt2":
            config = transformers.GPT2Config(vocab_size=200, n_positions=32, n_embd=64, n_layer=3, n_head=4)
            model = transformers.GPT2Model(config)
            parts = [model.wte, model.wpe, *model.h, model.ln_f]
        case "llama":
            config = transformers.LlamaConfig(vocab_size=200, num_key_value_heads=2, **small)
            model = transformers.LlamaForCausalLM(config)
            parts = [model.model.embed_tokens, model.model.rotary_emb, *model.model.layers, model.model.norm]
            parts.append(model.lm_head)
        case "bert":
            model = transformers.BertModel(transformers.BertConfig(vocab_size=200, **small))
            parts = [model.embeddings, *model.encoder.layer, model.pooler]
        case _:
            model = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **small))
            parts = [child for child in model.modules() if type(child).__name__ in _VIT]
    return nn.Sequential(*parts)


_VIT = {"ViTEmbeddings", "ViTLayer", "ViTPooler", "LayerNorm"}

FACTORIES: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mlp(in_features=64, width=64, depth=4, classes=10),
    "cnn": lambda: cnn(in_channels=3, channels=[16, 32], classes=10, image_size=32),
    "resnet": lambda: resnet(in_channels=3, channels=[16, 32], classes=10),
    "vit": lambda: vit(image_size=32, patch_size=4, in_channels=3, width=64, depth=3, heads=4, classes=10),
    "char_transformer": lambda: char_transformer(
        vocabulary=99, context=16, width=64, depth=3, heads=4, dropout=0.1
    ),
    "encoder": encoder,
    "torchvision": LikeTorchvision,
    "by hand": drawn_by_hand,
    "norms": normed,
    "rejection": by_rejection,
    "tables": lambda: [Tables(), copy.deepcopy(Tables()), Tables()],
    "tied": lambda: [layer := nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), layer][:3],
    **{kind: lambda kind=kind: of_transformers(kind) for kind in ("gpt2", "llama", "bert", "hf-vit")},
}


@pytest.mark.parametrize("name", FACTORIES)
def test_each_layer_alone_has_the_bits_of_a_whole_build(name: str) -> None:
    make = seeded(FACTORIES[name])
    whole = {layer.name: layer.module for layer in list_layers(make())}
    found = outline(make, SMALLEST)
    for layer in found.layers:
        (own,) = found.share([layer.name]).build(make)
        wanted = list(tensors_of(whole[own.name]))
        for tensor, truth in zip(tensors_of(own.module), wanted, strict=True):
            assert same_bits(tensor, truth)


@pytest.mark.parametrize("name", ["encoder", "llama", "vit"])
def test_a_share_draws_and_keeps_what_its_layers_need_alone(name: str) -> None:
    found = outlined(FACTORIES[name])
    shares = [found.share([layer.name]) for layer in found.layers]
    kept = sum(len(share.kept) for share in shares)
    assert kept < 2 * len(frozenset().union(*(share.kept for share in shares)))
    assert max(len(share.drawn) for share in shares) < shares[0].draws
    assert all(share.states.keys() <= share.drawn for share in shares)


@contextmanager
def counted_memory(limit: int) -> Iterator[None]:
    """Refuse storages that are alive together beyond a number of bytes, by torch's own count of allocations."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        yield
    held = most = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most <= limit, most


def test_memory_is_that_of_the_layers_and_the_largest_other_tensor() -> None:
    def factory() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(16)))

    one = 512 * 512 * 4
    make = seeded(factory)
    with counted_memory(2 * one):
        found = outline(make)
    with counted_memory(round(3.1 * one)):
        (first, second) = found.share(["4", "5"]).build(make)
    assert first.name == "4" and second.name == "5"
    with pytest.raises(AssertionError), counted_memory(round(3.1 * one)):
        make()


def test_an_outline_runs_on_made_up_weights_the_same_each_time() -> None:
    factory = FACTORIES["vit"]
    x = torch.rand(2, 3, 32, 32)
    plain = seeded(factory)()
    found = outlined(factory)
    with found.running().active():
        outlined_trace = trace(found.model, found.layers, x, "flops")
        first, again = found.model(x), found.model(x)
        composed = x
        for layer in found.layers:
            composed = layer.module(composed)
    assert outlined_trace == trace(plain, list_layers(plain), x, "flops")
    assert torch.equal(first, again) and torch.equal(first, composed)
    assert bool(torch.isfinite(first).all()) and float(first.detach().std()) > 1e-3


def test_a_closed_outline_has_shapes_but_no_weights() -> None:
    found = outlined(FACTORIES["cnn"])
    found.close()
    plain = seeded(FACTORIES["cnn"])()
    shapes = {name: value.shape for name, value in found.model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in plain.state_dict().items()}
    assert {p.device.type for p in found.model.parameters() if p.nbytes >= SMALLEST} == {"meta"}
    assert found.nbytes == sum(value.nbytes for value in plain.state_dict().values())


def looks() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.Linear(64, 64)]
    return layers * 2 if layers[0].weight.max() > 10 else layers


def in_numpy() -> list[nn.Module]:
    layer = nn.Linear(64, 64)
    layer.weight.detach().numpy()[:] = 1
    return [layer]


def in_a_closure() -> list[nn.Module]:
    weight, layer = torch.randn(64, 64), nn.Linear(64, 64)
    layer.extra = lambda x: x @ weight  # type: ignore[assignment]
    return [layer]


def caught() -> list[nn.Module]:
    layer = nn.Linear(64, 64)
    try:
        scale = float(layer.weight.norm())
    except Exception:
        scale = 1.0
    layer.weight.data.div_(scale)
    return [layer]


def drawn_by_values() -> list[nn.Module]:
    layer = nn.Linear(64, 64)
    layer.weight.data = torch.poisson(layer.weight.data.abs())
    return [layer]


@pytest.mark.parametrize(
    "factory",
    [looks, in_numpy, in_a_closure, caught, drawn_by_values, lambda: [nn.LazyLinear(4)]],
    ids=["branch", "numpy", "closure", "caught", "poisson", "lazy"],
)
def test_what_needs_values_that_are_not_there_is_refused(factory: Callable[[], Any]) -> None:
    with pytest.raises(UnfitError):
        outlined(factory)


def test_a_factory_that_builds_otherwise_the_second_time_is_refused() -> None:
    depths = iter([2, 3])
    make = seeded(lambda: [nn.Linear(64, 64) for _ in range(next(depths))])
    found = outline(make, SMALLEST)
    with pytest.raises(UnfitError):
        found.share(["0"]).build(make)


def test_a_hidden_reference_to_another_layer_keeps_what_it_refers_to() -> None:
    class Hidden(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.other = [other]

    def factory() -> list[nn.Module]:
        embedding = nn.Embedding(100, 64)
        return [embedding, nn.Linear(64, 64), Hidden(embedding)]

    make = seeded(factory)
    found = outline(make, SMALLEST)
    (own,) = found.share(["2"]).build(make)
    assert same_bits(own.module.other[0].weight, make()[0].weight)
