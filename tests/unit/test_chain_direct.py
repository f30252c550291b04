"""The direct form under the interface of the chain form: textbook direct feedback alignment, and its bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa import InputError, convert, revert
from lowdimfa.chain.direct import OutputError
from lowdimfa.models import cnn


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def feedback_of(layer: nn.Module) -> Any:
    return layer.feedback


def test_at_full_rank_with_fixed_q_it_is_direct_feedback_alignment() -> None:
    model = convert(perceptron(), 4, rule="direct", q_rule="fixed")
    x, y = drawn(5, 6), torch.tensor([0, 3, 1, 2, 2])
    functional.cross_entropy(model(x), y).backward()

    weights = [model[i].weight.detach() for i in (0, 2, 4)]
    biases = [model[i].bias.detach() for i in (0, 2, 4)]
    first = torch.tanh(x @ weights[0].t() + biases[0])
    second = torch.tanh(first @ weights[1].t() + biases[1])
    error = torch.softmax(second @ weights[2].t() + biases[2], -1)
    error = (error - functional.one_hot(y, 4)) / len(x)
    second_delta = error @ feedback_of(model[4]).Q.t() * (1 - second**2)
    first_delta = error @ feedback_of(model[2]).Q.t() * (1 - first**2)
    for layer, delta, entering in ((0, first_delta, x), (2, second_delta, first), (4, error, second)):
        torch.testing.assert_close(model[layer].weight.grad, delta.t() @ entering)
        torch.testing.assert_close(model[layer].bias.grad, delta.sum(0))
        assert feedback_of(model[layer]).Q.grad is None


def test_below_full_rank_q_learns_from_the_projected_output_error() -> None:
    model = convert(perceptron(), 2, rule="direct")
    output_error: Any = feedback_of(model[2]).output
    rows, entering = output_error.P.clone(), model[:2](drawn(5, 6)).detach()
    output = model(drawn(5, 6))
    error = drawn(5, 4)
    output.backward(error)
    torch.testing.assert_close(feedback_of(model[2]).Q.grad, entering.t() @ (error @ rows.t()))
    assert torch.dist(output_error.P, rows) > 1e-3  # Oja's rule


@pytest.mark.parametrize("with_example", [False, True])
def test_an_output_without_a_dimension_of_its_own_is_refused(with_example: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0))
    x = torch.randn(8, 6)
    with pytest.raises(InputError, match="Keep the last dimension"):
        convert(model, 1, rule="direct", example=x if with_example else None)(x)


def test_p_rests_in_evaluation_mode() -> None:
    model = convert(perceptron(), 2, rule="direct").eval()
    rows = feedback_of(model[2]).output.P.clone()
    model(drawn(5, 6)).square().sum().backward()
    assert torch.equal(feedback_of(model[2]).output.P, rows)


class OverTokens(nn.Module):
    """A layer for every token, a mean over tokens or none, and a last layer."""

    def __init__(self, per_token: bool) -> None:
        super().__init__()
        self.embed, self.mix, self.last = (nn.Linear(3, 3).double() for _ in range(3))
        self.per_token = per_token

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(torch.tanh(self.embed(x)))
        output: Tensor = self.last(mixed if self.per_token else mixed.mean(1))
        return output


@pytest.mark.parametrize("per_token", [True, False])
def test_tokens_have_errors_of_their_own_or_share_one_through_their_mean(per_token: bool) -> None:
    model = convert(OverTokens(per_token), 3, rule="direct")
    x = drawn(2, 5, 3)
    entering = torch.tanh(model.embed(x)).detach()
    output = model(x)
    error = drawn(*output.shape)
    output.backward(error)
    feedback = feedback_of(model.mix)
    shared = error if per_token else error[:, None].expand(-1, 5, -1) / 5
    delta = shared @ feedback.Q.detach().t() * (1 - entering**2)
    torch.testing.assert_close(model.embed.weight.grad, delta.flatten(0, 1).t() @ x.flatten(0, 1))
    torch.testing.assert_close(feedback.Q.grad, entering.flatten(0, 1).t() @ shared.flatten(0, 1))


def test_a_convolution_gets_an_error_for_every_value_of_its_padded_input() -> None:
    example = drawn(2, 2, 4, 4)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 4)
    ).double()
    convert(model, 4, rule="direct", example=example)
    feedback = feedback_of(model[1])
    output = model(example)
    error = drawn(2, 4)
    output.backward(error)
    delivered = (error @ feedback.Q.detach().t()).view(2, 3, 4, 4)
    torch.testing.assert_close(model[0].bias.grad, delivered.sum((0, 2, 3)))


def test_the_example_changes_nothing_in_the_model() -> None:
    model = cnn(1, (4, 4), 3, 8, dropout=0.5).train()
    model[0][1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    convert(model, 3, rule="direct", example=torch.randn(2, 1, 8, 8))
    assert [
        module.training for module in model.modules() if not hasattr(module, "P") and not hasattr(module, "Q")
    ] == modes
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_every_forward_pass_gets_its_own_error() -> None:
    x = drawn(3, 6)
    together, apart = (convert(perceptron(), 4, rule="direct") for _ in range(2))
    outputs = [together(x), together(2 * x)]
    for output, error in zip(reversed(outputs), (drawn(3, 4), 3 * drawn(3, 4)), strict=True):
        output.backward(error)
    for scale, error in ((2, drawn(3, 4)), (1, 3 * drawn(3, 4))):
        apart(scale * x).backward(error)
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.allclose(one.grad, other.grad)


def test_revert_stops_listening_to_the_model() -> None:
    model, plain = convert(perceptron(), 2, rule="direct"), perceptron()
    revert(model)
    for one in (model, plain):
        one(drawn(5, 6)).square().sum().backward()
    assert not model._forward_hooks and not model._forward_pre_hooks
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_a_failed_forward_pass_leaves_nothing_behind() -> None:
    model = convert(perceptron(), 4, rule="direct")
    with pytest.raises(RuntimeError):
        model(drawn(3, 5))
    with pytest.raises(InputError, match="outside of its model's forward"):
        model[2](drawn(3, 9).requires_grad_())
    model(drawn(3, 6)).sum().backward()
    assert model[0].weight.grad is not None


def test_errors_say_what_the_rule_needs() -> None:
    model = convert(perceptron(), 4, rule="direct")
    hidden: list[Tensor] = []
    model[3].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    model(drawn(3, 6))
    with pytest.raises(InputError, match="doesn't begin at the model's output"):
        hidden[0].sum().backward()

    with pytest.raises(InputError, match="a batch of inputs"):
        convert(cnn(1, (4, 4), 3, 8), rule="direct")
    attention = nn.TransformerEncoderLayer(4, 2, 8)
    with pytest.raises(InputError, match="batch_first=False"):
        convert(attention, rule="direct")
    with pytest.raises(InputError, match="start"):
        convert(perceptron(), rule="direct", start="transposed")
    wrong_width = convert(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Unflatten(1, (3, 1))), rule="direct"
    )
    with pytest.raises(InputError, match=r"width 1; expected 3.*example"):
        wrong_width(torch.randn(2, 4)).sum().backward()


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_a_model_with_several_outputs_is_refused() -> None:
    with pytest.raises(InputError, match="tuple"):
        convert(TwoOutputs(), rule="direct", example=torch.randn(2, 4))
    with pytest.raises(InputError, match="tuple"):
        convert(TwoOutputs(), rule="direct")(torch.randn(2, 4))


def test_images_of_another_size_than_the_examples_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convert(model, rule="direct", example=torch.randn(1, 1, 8, 8))
    with pytest.raises(InputError, match="as in the example"):
        model(torch.randn(2, 1, 9, 9)).sum().backward()


def test_one_projection_serves_all_layers() -> None:
    model = convert(perceptron(), 2, rule="direct")
    assert len({id(module) for module in model.modules() if isinstance(module, OutputError)}) == 1


def test_an_error_of_an_earlier_backward_pass_is_never_delivered() -> None:
    model = convert(perceptron(), 4, rule="direct")
    hidden: list[Tensor] = []
    model[3].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    output = model(drawn(3, 6))
    output.sum().backward(retain_graph=True)
    with pytest.raises(InputError, match="doesn't begin at the model's output"):
        hidden[-1].sum().backward(retain_graph=True)
    output.square().sum().backward()  # one that does, once more
