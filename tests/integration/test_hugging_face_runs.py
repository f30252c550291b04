"""Networks of Hugging Face train in blocks, go on from checkpoints, and come back as a folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from sequences import TOKENS, following
from torch import Tensor
from typer.testing import CliRunner

from lowdimfa.data import digits
from lowdimfa.encoding import same
from lowdimfa.errors import InputError
from lowdimfa.models import hugging_face
from lowdimfa.services.cli.app import app
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.pretrained import export_folder
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.run_dir import read_run

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = {"vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
GPT2 = {
    "model_type": "gpt2",
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 16,
    "vocab_size": TOKENS,
    "n_positions": 12,
}
LLAMA = {"model_type": "llama", **WORDS, "intermediate_size": 32, "num_key_value_heads": 2}
BERT = {"model_type": "bert", **WORDS, "intermediate_size": 32}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
    "hidden_dropout_prob": 0.1,
}
FOLLOWING = {"factory": "sequences:following"}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gpt2": ({"config": GPT2}, FOLLOWING, "AutoModelForCausalLM"),
    "llama": ({"config": LLAMA}, FOLLOWING, "AutoModelForCausalLM"),
    "bert": (
        {"config": BERT | {"vocab_size": TOKENS + 1}, "task": "masked-lm"},  # one more for what is hidden
        {"factory": "sequences:masked"},
        "AutoModelForMaskedLM",
    ),
    "vit": (
        {"config": VIT, "task": "image-classification"},
        {"factory": "lowdimfa.data:digits"},
        "AutoModelForImageClassification",
    ),
}
FALCON = {"model_type": "falcon", **WORDS, "alibi": True, "multi_query": False, "parallel_attn": False}
GEMMA = LLAMA | {"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 5, "pad_token_id": 0}
OPT = {"model_type": "opt", **WORDS, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 12}
OPT |= {"dropout": 0.0}
TABLE, WORDS_TABLE = "model.embed_tokens.weight", "transformer.word_embeddings.weight"
BLOOM = {"model_type": "bloom", "vocab_size": TOKENS, "hidden_size": 16, "n_layer": 3, "n_head": 4}
MPT = {"model_type": "mpt", "vocab_size": TOKENS, "d_model": 16, "n_layers": 3, "n_heads": 4}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3": (LLAMA | {"model_type": "qwen3", "head_dim": 8}, ""),
    "gemma3": (GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, TABLE),
    "opt": (OPT, "model.decoder.embed_tokens.weight"),
    "falcon": (FALCON, WORDS_TABLE),
    "bloom": (BLOOM, WORDS_TABLE),
    "mpt": (MPT, "transformer.wte.weight"),
}
"""Configurations, and what shares a table with the output."""
TIED = {
    name: f"{output} is tied to {table}: here each learns by itself, from the same start"
    for name, output, table in [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ]
}


def fit(
    name: str,
    run_dir: Path,
    engine: Any = "local",
    resume_step: int | None = None,
    blocks: int | None = None,
    **train: Any,
) -> Any:
    args, data, _ = NETWORKS[name]
    plain: dict[str, Any] = {
        "model": {
            "factory": "lowdimfa.models:hugging_face",
            "args": args,
            "blocks": blocks or (2 if name == "gpt2" else 4),
        },
        "data": data,
        "train": {
            "steps": 24,
            "batch_size": 32,
            "microbatches": 2,
            "optimizer": {"args": {"lr": 0.01}},
            "log_every": 1,
        }
        | train,
        "run": {"checkpoint_every": 12, "keep": 2, "liveness_seconds": 30.0},
    }
    events: list[dict[str, Any]] = []
    own = Path(__file__).parent
    DecoupledTrainer(
        plain, engine=engine, run_dir=run_dir, resume_step=resume_step, on_event=events.append, user_code=own
    ).fit()
    return events


def bits(run_dir: Path, step: int | None = None) -> dict[str, Any]:
    """Return all that the checkpoint of a step, or the last one, has."""
    manifest = CheckpointStore(run_dir).load(step)
    scalars = [entry.scalars for entry in manifest.entries]
    return {"tensors": manifest.tensors(lambda name: True), "scalars": scalars}


def inputs(name: str) -> Tensor:
    return digits().test.inputs(torch.arange(5)) if name == "vit" else following()[0][:5]


def export(run_dir: Path, output: Path) -> Any:
    return CliRunner().invoke(
        app, ["export", str(run_dir), "--format", "hugging-face", "--output", str(output)]
    )


def learns_and_comes_back(name: str, tmp_path: Path, expected: list[str]) -> Any:
    events = fit(name, tmp_path / "run")
    losses = [event["loss"] for event in events if event["event"] == "progress"]
    assert losses[-1] < 0.9 * losses[0]
    told = [event["message"] for event in events if event["event"] == "warning"]
    assert told == expected

    whole = bits(tmp_path / "run")
    fit(name, tmp_path / "run", resume_step=12)
    assert same(bits(tmp_path / "run"), whole)

    outcome = export(tmp_path / "run", tmp_path / "folder")
    assert outcome.exit_code == 0, outcome.output
    assert told == [line for line in outcome.output.splitlines() if line in told]
    network, loading = getattr(transformers, NETWORKS[name][2]).from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not any(loading.values())
    again = hugging_face(**NETWORKS[name][0]).eval()
    saved = {key[6:]: value for key, value in whole["tensors"].items() if key.startswith("model/")}
    # A tensor with two names in a layer is kept under one.
    assert not again.load_state_dict(saved, strict=False).unexpected_keys
    torch.testing.assert_close(network(inputs(name)).logits, again(inputs(name)))
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_goes_on_and_comes_back(name: str, tmp_path: Path) -> None:
    learns_and_comes_back(name, tmp_path, [TIED[name]] if name in TIED else [])


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_does_so_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, table = OTHERS[name]
    monkeypatch.setitem(NETWORKS, name, ({"config": config}, FOLLOWING, "AutoModelForCausalLM"))
    tied = f"lm_head.weight is tied to {table}: here each learns by itself, from the same start"
    network = learns_and_comes_back(name, tmp_path, [tied] if table else [])
    tokens = inputs(name)[:1, :4]
    for _ in range(4):
        tokens = torch.cat([tokens, network(tokens).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(network.generate(tokens[:, :4], max_new_tokens=4, do_sample=False), tokens)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("name", "blocks"),
    [("bert", 2)]
    + [
        pytest.param(name, blocks, marks=pytest.mark.slow)
        for name, blocks in [("bert", 4), ("gpt2", 2), ("llama", 2), ("llama", 4), ("vit", 2), ("vit", 4)]
        + [(name, 2) for name in OTHERS]
    ],
)
def test_over_ray_it_has_the_bits_of_in_process(
    name: str, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in OTHERS:
        config = {"config": OTHERS[name][0]}
        monkeypatch.setitem(NETWORKS, name, (config, FOLLOWING, "AutoModelForCausalLM"))
    fit(name, tmp_path / "local", blocks=blocks)
    fit(name, tmp_path / "ray", "ray", blocks=blocks, steps=12)
    assert same(bits(tmp_path / "ray"), bits(tmp_path / "local", 12))
    if name == "bert":
        fit(name, tmp_path / "ray", "ray", blocks=blocks, resume_step=12)
        assert same(bits(tmp_path / "ray"), bits(tmp_path / "local", 24))


def test_a_language_model_writes_on(tmp_path: Path) -> None:
    fit("gpt2", tmp_path / "run", steps=120)
    assert export(tmp_path / "run", tmp_path / "folder").exit_code == 0
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    whole = following()[0][3:4]
    assert torch.equal(network.generate(whole[:, :4], max_new_tokens=8, do_sample=False), whole)


def test_a_tokenizer_whose_place_has_no_name_here_is_not_copied(tmp_path: Path) -> None:
    fit("gpt2", tmp_path / "run", steps=1)
    specification = read_run(tmp_path / "run")
    data = specification.data.model_copy(update={"args": {"path": "$THAT_IS_NOWHERE/tokens"}})
    manifest = CheckpointStore(tmp_path / "run").load(None)
    files, notices = export_folder(
        specification.model_copy(update={"data": data}), manifest, tmp_path / "folder"
    )
    assert "model.safetensors" in files and "tokenizer.json" not in files
    assert "no tokenizer was copied from $THAT_IS_NOWHERE/tokens: $THAT_IS_NOWHERE is not set" in notices


def test_a_configuration_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    """The weights would be those of a network that computes something else, with the same shapes."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GPT2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "file", ({"config": str(file)}, FOLLOWING, ""))
        fit("file", tmp_path / "run")
        file.write_text(json.dumps(GPT2 | {"layer_norm_epsilon": 0.1, "eos_token_id": 3}))
        changed = "model.args: the configuration's layer_norm_epsilon: found 0.1; expected 1e-05, as when"
        with pytest.raises(InputError, match=changed):
            fit("file", tmp_path / "run", resume_step=12)
        outcome = export(tmp_path / "run", tmp_path / "folder")
        assert isinstance(outcome.exception, InputError) and changed in str(outcome.exception)
        file.write_text(json.dumps(GPT2 | {"eos_token_id": 3}))
        fit("file", tmp_path / "run", resume_step=12)


@pytest.mark.parametrize("loss", ["auto", "bce", "mse"])
def test_several_labels_need_a_loss_that_is_said(loss: str, tmp_path: Path) -> None:
    """`transformers` takes the logistic loss where labels are numbers; here the squared error is usual for these."""
    model = {"factory": "lowdimfa.models:hugging_face", "blocks": 2}
    model |= {"args": {"config": BERT | {"num_labels": 3}, "task": "sequence-classification"}}
    plain = {
        "model": model,
        "data": {"factory": f"{__name__}:several_labels"},
        "train": {"steps": 1, "batch_size": 8, "loss": loss},
    }
    refused = pytest.raises(InputError, match=r"^train\.loss: found 'auto'.* with a network of 3 labels")
    with refused if loss == "auto" else nullcontext():
        make_run_plan(parse_specification(plain, "test"))


def several_labels() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = torch.randint(10, (64, 6), generator=torch.Generator().manual_seed(0))
    labels = (tokens[:, :3] > 4).float()
    return tokens, labels, tokens, labels


def numbers(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = torch.randint(10, (16, 6), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 0] % 3 if kind == "integers" else tokens[:, :3].float().softmax(-1)
    return tokens, targets, tokens, targets


@pytest.mark.parametrize(
    ("problem", "kind", "found"),
    [
        ("regression", "integers", "'auto', which is cross_entropy for integers"),
        ("single_label_classification", "shares", "'auto', which is mse for targets that are no integers"),
        ("multi_label_classification", "shares", "'auto', which is mse for targets that are no integers"),
        ("single_label_classification", "integers", None),
        ("regression", "shares", None),
    ],
)
def test_a_problem_type_that_means_another_loss_is_refused(
    problem: str, kind: str, found: str | None
) -> None:
    config = BERT | {"num_labels": 3, "problem_type": problem}
    data = {"factory": f"{__name__}:numbers", "args": {"kind": kind}}
    model = {"factory": "lowdimfa.models:hugging_face", "blocks": 2}
    model |= {"args": {"config": config, "task": "sequence-classification"}}
    plain = {"model": model, "data": data, "train": {"steps": 1, "batch_size": 8}}
    if found is None:
        make_run_plan(parse_specification(plain, "test"))
        return
    with pytest.raises(InputError) as caught:
        make_run_plan(parse_specification(plain, "test"))
    assert (
        f"train.loss: found {found}, with the configuration's problem_type {problem!r}"
        in caught.value.message
    )


def test_another_network_or_place_is_refused(tmp_path: Path) -> None:
    plain = {
        "model": {"factory": "lowdimfa.models:mlp", "blocks": 2}
        | {"args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10}},
        "data": {"factory": "lowdimfa.data:digits"},
        "train": {"steps": 1, "batch_size": 32},
    }
    DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "run").fit()
    outcome = export(tmp_path / "run", tmp_path / "folder")
    assert isinstance(outcome.exception, InputError)
    assert "--format hugging-face: found a run whose model is lowdimfa.models:mlp" in str(outcome.exception)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 10},
            "model.args: found an embedding of 10 tokens; expected room for the tokens 0 to 10",
        ),
        (
            {"n_positions": 11},
            "model.args: found positions for 11 tokens; expected room for the data's sequences of 12",
        ),
    ],
)
def test_a_network_that_is_too_small_for_the_data_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "gpt2", ({"config": GPT2 | change}, FOLLOWING, ""))
    with pytest.raises(InputError) as caught:
        fit("gpt2", tmp_path / "run")
    assert message in caught.value.message
    assert not (tmp_path / "run").exists()


def test_labels_that_are_the_inputs_are_refused(tmp_path: Path) -> None:
    """As they are for the loss of `transformers`, which moves them on by one; a plain loss would teach to copy."""
    tokens = following()[0]
    model = {"factory": "lowdimfa.models:hugging_face", "args": {"config": GPT2}}
    for given in (tokens, [{"input_ids": row, "labels": row} for row in tokens]):
        data = (tokens, tokens, tokens, tokens) if given is tokens else (given, given)
        with pytest.raises(InputError, match="the very tokens of the inputs"):
            DecoupledTrainer(
                model=model,
                data=data,
                blocks=2,
                batch_size=8,
                steps=1,
                engine="local",
                run_dir=tmp_path / "run",
            ).fit()


@pytest.mark.parametrize(
    ("name", "found"), [("following", "after those of"), ("present", "that are the very")]
)
def test_a_masked_language_model_that_sees_its_targets_is_refused(name: str, found: str) -> None:
    """Its loss would fall to nothing, by copying the token at hand or the one after."""
    config = BERT | {"vocab_size": TOKENS + 1}
    model = {"factory": "lowdimfa.models:hugging_face", "args": {"config": config, "task": "masked-lm"}}
    plain = {"model": model | {"blocks": 2}, "train": {"steps": 1, "batch_size": 2}}
    source = "sequences:following" if name == "following" else f"{__name__}:present"
    with pytest.raises(InputError, match=rf"{found} .*masked-lm sees.*DataCollatorForLanguageModeling"):
        make_run_plan(parse_specification(plain | {"data": {"factory": source}}, "test"))
    make_run_plan(parse_specification(plain | {"data": {"factory": "sequences:masked"}}, "test"))


def present() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = following()[0]
    return tokens, tokens, tokens, tokens
