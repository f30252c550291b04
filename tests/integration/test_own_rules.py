"""The rules on the page about rules of one's own: they train over Ray as in process, and go on from checkpoints."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lowdimfa.encoding import same
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.trainer.api import DecoupledTrainer

PAGE = (Path(__file__).parents[2] / "docs" / "own-rules.md").read_text("utf-8")
FIRST, *CLASSES, CONVERSION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SPECIFICATION,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
IMPORTS = (
    "from lowdimfa import ChainRule, FactoryConfig, PRule, Tap, convert\nfrom lowdimfa.models import mlp\n"
)
OTHERS = {"tap": "own_rules:Squashed", "p_rule": "own_rules:Fading", "error_dim": 6, "every_layer": True}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with the page's module, which this process imports and forgets again."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_rules.py").write_text("\n".join([FIRST, IMPORTS, *CLASSES]), "utf-8")
    (code / "spec.yaml").write_text(SPECIFICATION, "utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield code
    sys.modules.pop("own_rules", None)


def trained(
    folder: Path, run: str, engine: str = "local", resume_step: int | None = None, **feedback: Any
) -> Manifest:
    """Return the last checkpoint of a run."""
    given = [f"feedback.{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in feedback.items()]
    run_dir = folder.parent / run
    specification = folder / "spec.yaml"
    DecoupledTrainer(
        specification,
        engine=engine,
        run_dir=run_dir,
        overrides=given,
        resume_step=resume_step,  # type: ignore[arg-type]
    ).fit()
    return CheckpointStore(run_dir).load(None)


def bits(manifest: Manifest) -> dict[str, Any]:
    """Return all that a checkpoint has."""
    return {
        "tensors": manifest.tensors(lambda name: True),
        "scalars": [entry.scalars for entry in manifest.entries],
    }


def test_the_first_rule_is_short() -> None:
    lines = FIRST.split("class Traced")[1].splitlines()
    assert len(lines) <= 30


@pytest.mark.usefixtures("cluster")
def test_over_ray_they_have_the_bits_of_in_process_and_go_on_from_a_checkpoint(folder: Path) -> None:
    local = bits(trained(folder, "local", **OTHERS))
    assert same(bits(trained(folder, "ray", "ray", **OTHERS)), local)
    assert same(bits(trained(folder, "ray", "local", 6, **OTHERS)), local)
    kept = {name for name in local["tensors"] if name.startswith(("rule/", "projection/"))}
    assert kept == {"rule/0/trace", "rule/1/trace", "rule/2/trace", "projection/size"}


def test_the_first_one_alone_goes_on_too(folder: Path) -> None:
    whole = bits(trained(folder, "local"))
    assert all(bool(value.any()) for name, value in whole["tensors"].items() if name.endswith("/trace"))
    assert same(bits(trained(folder, "local", "local", 6)), whole)


def test_the_chain_rule_learns_alike_twice(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        space: dict[str, Any] = {}
        exec(IMPORTS + CONVERSION, space)
        model = space["model"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        inputs = torch.randn(128, 20)
        targets = inputs[:, :5].argmax(-1)
        losses.append([])
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] / 2
    assert any(name.endswith("feedback.mask") for name in model.state_dict())
