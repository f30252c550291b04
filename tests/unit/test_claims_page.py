"""The command of the claims and the page that it makes: options, budgets, and a page from the stored files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.claims.__main__ import main
from benchmarks.claims.cache import RunCache, key_of
from benchmarks.claims.claim import MODULES, RunSettings, load
from benchmarks.claims.methods import BACKPROP, GENERATIONS, direct, generation_label
from benchmarks.claims.networks import DIRECT_ERROR_DIMS, MLP, VGG, VIT
from benchmarks.claims.page import _pages, check_page, configuration, page
from benchmarks.claims.settings import GRID, Setting, effort
from benchmarks.claims.storing import Places
from benchmarks.gap.long import ROWS
from benchmarks.gap.networks import NETWORKS
from benchmarks.gap.rules import BACKPROP as BACKPROP_IN_BLOCKS
from benchmarks.gap.rules import FIXED, FROZEN, LOCAL, READOUT
from lowdimfa.errors import InputError

CPU = torch.device("cpu")


def places_in(folder: Path) -> Places:
    return Places(folder / "results", folder / "docs", folder / "runs.jsonl")


def store(folder: Path, direct_form: float) -> Places:
    """Store a made-up result of C6."""
    means = {BACKPROP.label: 50.0}
    for r in DIRECT_ERROR_DIMS:
        means |= {generation_label(rule, r): 40.0 for rule in GENERATIONS} | {direct(r).label: direct_form}
    chosen = {"rate": 0.001, "weight_decay": 0.01}
    result = {
        "benchmark": "claim",
        "claim": "C6",
        "command": "python -m benchmarks.claims C6 --seeds 2 --budget 3",
        "date": "1 May 2026",
        "environment": {"device": "cpu", "machine": "m", "threads": 1, "python": "3", "torch": "2"},
        "seconds": 90.0,
        "configuration": {"networks": {"MLP": MLP.configuration()}, "methods": {"a": {"rule": "plain"}}},
        "summary": {"MLP": {name: {**chosen, "scores": [mean, mean]} for name, mean in means.items()}},
    }
    places = places_in(folder)
    places.results.mkdir(parents=True, exist_ok=True)
    (places.results / "claim-C6.json").write_text(json.dumps(result))
    return places


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C9"], "claims: found 'C9'; expected some of C1, C2"),
        (["c2", "nonsense"], "'nonsense'"),
        (["C2", "--seeds", "0"], "--seeds"),
        (["C2", "--threads", "0"], "--threads"),
        (["C2", "--budget", "0"], "--budget"),
        (["C2", "--budget", "nan"], "--budget"),
        (["C6", "--budget", "0.01"], "Give more minutes"),
        (["C2", "--epochs", "0"], "--epochs"),
        (["C2", "--page"], "--page"),
        (["--check", "C2"], "--check"),
    ],
)
def test_what_can_not_be_used_is_said_with_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--device", "cpu"], places_in(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.claims: ")
    assert message in error
    assert not list(tmp_path.rglob("*.json"))


def test_an_unknown_option_ends_with_exit_code_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--budgets", "3"])
    assert ended.value.code == 2


def test_the_page_says_what_is_stored_and_what_is_not(tmp_path: Path) -> None:
    text = page(store(tmp_path, 39.0))
    section = text.split("## C6")[1].split("## C7")[0]
    assert "**Not reproduced.**" in section
    row = next(line for line in section.splitlines() if line.startswith("| 1 "))
    assert [cell.strip() for cell in row.split("|")[4:6]] == ["40.00 ± 0.00", "39.00 ± 0.00"]
    assert "figures/claim-C6.png" in section
    assert "`python -m benchmarks.claims C6 --seeds 2 --budget 3` on 1 May 2026 in 1.5 minutes" in section
    assert all(str(value) in section for value in (MLP.samples, MLP.steps, MLP.batch_size))
    for name in set(MODULES) - {"C6"}:
        assert f"`python -m benchmarks.claims {name}` makes one" in text
    assert "**Reproduced.**" in page(store(tmp_path, 40.0))


@pytest.mark.slow
def test_a_page_that_is_out_of_date_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = store(tmp_path, 39.0)
    assert main(["--check"], places) == 1
    assert main(["--page"], places) == 0
    written = (places.docs / "results.md").read_bytes()
    assert main(["--check"], places) == 0
    assert places.figure("claim-C6").exists()
    store(tmp_path, 38.0)
    assert main(["--check"], places) == 1
    assert "out of date" in capsys.readouterr().err
    store(tmp_path, 39.0)
    assert main(["--page"], places) == 0
    assert (places.docs / "results.md").read_bytes() == written


@pytest.mark.parametrize("option", ["--budget", "--epochs"])
def test_a_try_takes_the_place_of_nothing(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = store(tmp_path, 39.0)
    before = (places.results / "claim-C6.json").read_bytes()
    found = json.loads(before) | {"seconds": 1.0}
    monkeypatch.setattr("benchmarks.claims.__main__.measure", lambda claim, settings: found)
    assert main(["C6", option, "3", "--device", "cpu"], places) == 0
    assert "it isn't stored" in capsys.readouterr().out
    assert (places.results / "claim-C6.json").read_bytes() == before
    assert not places.docs.exists()
    assert main(["C6", "--device", "cpu"], places) == 0
    assert (places.results / "claim-C6.json").read_bytes() != before
    assert (places.docs / "results.md").exists()


def test_the_readme_has_what_the_default_misses_in_bold(tmp_path: Path) -> None:
    network, scores = (
        NETWORKS["mlp"],
        {BACKPROP_IN_BLOCKS: [90.0, 90.2], READOUT: [88.0, 88.2], LOCAL: [88.1, 88.1]},
    )
    scores[FIXED] = [80.0, 80.2]
    summary = {network.label: {rule.label: {"rate": 0.1, "scores": found} for rule, found in scores.items()}}
    places = places_in(tmp_path)
    places.results.mkdir()
    stored = json.loads((Places().results / "claim-GAP.json").read_text()) | {"summary": summary}
    (places.results / "claim-GAP.json").write_text(json.dumps(stored))
    places.readme.write_text("before\n<!-- gap -->\n<!-- end of gap -->\nafter\n")
    table = _pages(places)[places.readme]
    row = next(line for line in table.splitlines() if network.label in line)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["90.1 %", "**88.1 %**", "**88.1 %**", "80.1 %"]
    long = ROWS["mlp"]
    scores |= {READOUT: [90.0, 90.1], FROZEN: [70.0, 70.1]}
    summary = {long.label: {rule.label: {"rate": 0.1, "scores": found} for rule, found in scores.items()}}
    (places.results / "long-gap-mlp.json").write_text(json.dumps(stored | {"runs": [], "summary": summary}))
    lines = _pages(places)[places.readme].splitlines()
    assert not [line for line in lines if f"| {network.label} " in line]
    row = next(line for line in lines if long.label in line)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "90.1 %",
        "90.0 %",
        "88.1 %",
        "80.1 %",
        "70.0 %",
    ]
    assert table.startswith("before\n") and table.endswith("after\n")


def test_a_stored_file_that_is_no_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = store(tmp_path, 39.0)
    (places.results / "claim-C6.json").rename(places.results / "claim-C2.json")
    assert main(["--page"], places) == 2
    assert "claim-C2.json" in capsys.readouterr().err


def test_a_result_of_older_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = store(tmp_path, 39.0)
    path = places.results / "claim-C6.json"
    result = json.loads(path.read_text())
    del result["summary"]["MLP"][direct(DIRECT_ERROR_DIMS[0]).label]
    path.write_text(json.dumps(result))
    assert main(["--page"], places) == 2
    assert "python -m benchmarks.claims C6" in capsys.readouterr().err


def test_the_page_of_this_repository_is_what_its_results_give() -> None:
    assert check_page(Places()) == 0


def test_every_figure_on_the_page_of_this_repository_exists() -> None:
    docs = Places().docs
    text = (docs / "results.md").read_text()
    named = {part.split(")")[0] for part in text.split("](figures/")[1:]}
    assert named
    assert all((docs / "figures" / name).exists() for name in named)


def test_stored_results_are_small_and_name_what_made_them() -> None:
    for path in Places().results.glob("claim-*.json"):
        assert path.stat().st_size < 200_000
        found = json.loads(path.read_text())
        assert found["command"].startswith(f"python -m benchmarks.claims {found['claim']} --seeds ")
        assert {"python", "torch", "device"} <= set(found["environment"])
        assert found["configuration"]
        assert found["runs"]


def test_a_configuration_is_shown_as_tables_with_every_value() -> None:
    text = configuration({"networks": {"A": {"x": 1, "y": [1, 2]}, "B": {"x": 3}}, "seeds": 3})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert ["networks", "A", "B"] in rows
    assert ["x", "1", "3"] in rows
    assert ["y", "1, 2", ""] in rows
    assert ["seeds", "3"] in rows


@pytest.mark.parametrize("name", list(MODULES))
def test_every_claim_has_its_name_and_a_title(name: str) -> None:
    claim = load(name)
    assert claim.name == name
    assert len(claim.title) > 20


def test_a_budget_scales_the_work_by_samples_below_and_by_epochs_above() -> None:
    assert effort(RunSettings(), 10) == 1
    assert effort(RunSettings(budget_minutes=5), 10) == 0.5
    usual, fewer = len(GRID) + 2, len(GRID)
    assert effort(RunSettings(seeds=1, budget_minutes=10), 10) == pytest.approx(usual / fewer)
    half, triple = MLP.scaled(0.5), MLP.scaled(3)
    assert (half.samples, half.epochs) == (MLP.samples // 2, MLP.epochs)
    assert (triple.samples, triple.epochs) == (MLP.samples, 3 * MLP.epochs)
    assert half.steps == pytest.approx(MLP.steps / 2, abs=1)
    with pytest.raises(InputError, match="--budget"):
        MLP.scaled(1e-3)


@pytest.mark.parametrize("setting", [MLP, VGG, VIT])
def test_a_gpu_runs_a_larger_setting(setting: Setting) -> None:
    large = setting.on(torch.device("cuda"))
    assert setting.on(CPU) is setting
    sizes = [sum(p.numel() for p in one.network().parameters()) for one in (large, setting)]
    assert (large.steps, sizes[0]) > (setting.steps, sizes[1])
    assert large.steps >= setting.steps and sizes[0] >= sizes[1]


def test_records_are_found_by_what_decides_them(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "runs.jsonl"
    about = {"rate": 0.1, "seed": 0}
    key = key_of(about, CPU)
    assert key == key_of(dict(reversed(about.items())), CPU)
    others = [
        key_of({**about, "seed": 1}, CPU),
        key_of({**about, "rate": 0.2}, CPU),
        key_of(about, torch.device("cuda")),
    ]
    assert len({key, *others}) == 4
    RunCache(path).put(key, about, {"value": 1})
    RunCache(path).put(key, about, {"value": 2})
    assert RunCache(path).get(key) == {"value": 2}
    assert RunCache(path).get(others[0]) is None
    assert RunCache(path, fresh=True).get(key) is None
    path.write_text(path.read_text() + '{"key": "' + others[0] + '", "rec')
    again = RunCache(path)
    assert again.get(key) == {"value": 2}
    again.put(others[1], about, {"value": 3})
    assert RunCache(path).get(others[1]) == {"value": 3}
