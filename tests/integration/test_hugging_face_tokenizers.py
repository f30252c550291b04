"""Tokenizers of the data and of networks of Hugging Face: compared before training, and exported."""

from __future__ import annotations

import json
import string
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sequences import following
from test_hugging_face_runs import FOLLOWING, GPT2, NETWORKS, fit, tokenizers, transformers
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.notes import notes
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.pretrained import export_folder
from lowdimfa.services.run.tokenizer_files import copy_tokenizer, read_otherwise
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.run_dir import read_run


def tokenizer(folder: Path, kind: str = "PreTrainedTokenizerFast") -> Path:
    """Write a tokenizer of letters, as `lowdimfa data tokens` does, with the last one for the end."""
    folder.mkdir()
    letters = [*string.printable, "<|endoftext|>"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind, "eos_token": "<|endoftext|>"})
    )
    return folder


def test_an_export_ends_texts_where_its_tokenizer_does_and_keeps_its_template(tmp_path: Path) -> None:
    fit("gpt2", tmp_path / "run", steps=1)
    specification = read_run(tmp_path / "run")
    data = specification.data.model_copy(update={"args": {"path": str(tokenizer(tmp_path / "tokens"))}})
    _, notices = export_folder(
        specification.model_copy(update={"data": data}),
        CheckpointStore(tmp_path / "run").load(None),
        tmp_path / "folder",
    )
    assert not [notice for notice in notices if "AutoTokenizer" in notice]
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "folder")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert settings.eos_token_id == read.eos_token_id == 100 and settings.bos_token_id is None
    other = tokenizer(tmp_path / "whole")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "copied").mkdir()
    copy_tokenizer(str(tmp_path / "tokens"), str(other), tmp_path / "copied")
    assert (tmp_path / "copied" / "chat_template.jinja").read_text() == "{{ messages }}"
    (other / "tokenizer.json").write_text("{}")
    (other / "vocab.txt").write_text("of another one")
    copy_tokenizer(str(tmp_path / "tokens"), str(other), tmp_path / "copied")
    assert not (tmp_path / "copied" / "vocab.txt").exists()


def test_a_tokenizer_that_is_read_otherwise_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tokenizer(tmp_path / "tokens")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert read_otherwise(folder) == []

    class Other:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Other())
    (notice,) = read_otherwise(folder)
    assert "takes a Other for this kind of network, which makes other tokens" in notice


def at(path: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return following()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A language model with the tokenizer that it was trained with, and how it generates text."""
    folder = tokenizer(tmp_path / "checkpoint")
    config = transformers.CONFIG_MAPPING["gpt2"].from_dict(GPT2 | {"vocab_size": 101})
    network = transformers.GPT2LMHeadModel(config)
    network.generation_config = transformers.GenerationConfig(eos_token_id=100, max_new_tokens=7)
    network.save_pretrained(folder)
    return folder


def other_tokenizer(folder: Path, change: str) -> Path:
    """Write that of `tokenizer`, but with two letters that changed places, or one that no text is cut to."""
    file = tokenizer(folder) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    if change == "numbers":
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    elif change == "cuts":
        content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("change", ["none", "numbers", "cuts"])
def test_tokens_of_another_tokenizer_than_the_networks_are_refused(
    change: str, checkpoint: Path, tmp_path: Path
) -> None:
    tokens = other_tokenizer(tmp_path / "tokens", change)
    plain = {
        "model": {
            "factory": "lowdimfa.models:hugging_face",
            "args": {"path": str(checkpoint)},
            "blocks": 2,
        },
        "data": {"factory": f"{__name__}:at", "args": {"path": str(tokens)}},
        "train": {"steps": 1, "batch_size": 8},
    }
    refused = pytest.raises(
        InputError, match=r"another tokenizer .*\(10 is 'b' in place of 'a', and 1 more\)"
    )
    with refused if change == "numbers" else nullcontext():
        plan = make_run_plan(parse_specification(plain, "test"))
        told = [note for note in notes(plan) if "cuts text otherwise" in note]
        assert len(told) == (change == "cuts")


def test_how_text_is_generated_goes_with_its_tokenizer_alone(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "path", ({"path": str(checkpoint)}, FOLLOWING, ""))
        fit("path", tmp_path / "run", steps=1)
    specification = read_run(tmp_path / "run")
    for change, longest in (("none", 7), ("numbers", None)):
        tokens = other_tokenizer(tmp_path / change, change)
        data = specification.data.model_copy(update={"args": {"path": str(tokens)}})
        given = specification.model_copy(update={"data": data})
        folder = tmp_path / f"exported-{change}"
        export_folder(given, CheckpointStore(tmp_path / "run").load(None), folder)
        assert transformers.GenerationConfig.from_pretrained(folder).max_new_tokens == longest


def test_templates_and_tokenizers_of_other_files_are_exported(tmp_path: Path) -> None:
    whole = tokenizer(tmp_path / "whole")
    (whole / "additional_chat_templates").mkdir()
    (whole / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    for name, file in (("whole", "additional_chat_templates/tool.jinja"), ("words", "vocab.txt")):
        folder = tmp_path / f"of-{name}"
        folder.mkdir()
        copy_tokenizer(None, str(tmp_path / name), folder)
        assert (folder / file).read_bytes() == (tmp_path / name / file).read_bytes()
    folder.joinpath("vocab.txt").unlink()
    copy_tokenizer(str(tmp_path / "words"), None, folder)  # of data such a file may be anything
    assert not list(folder.iterdir())
