"""Generate ``docs/results.md``, and the table in ``README.md``, from the stored results alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import MODULES, Claim, Result, load
from benchmarks.claims.comparison import CRITERION
from benchmarks.claims.storing import Places, draw_stored, made_by_this_version, stored_claims
from benchmarks.gap import closing
from benchmarks.gap.grids import gap_rows, missing_rows, stored_tables
from benchmarks.reporting import markdown_table, updated

INTRO = f"""\
# Results

The claims of Hanut and Kadmon, *Training Large Neural Networks With Low-Dimensional Error Feedback*
(arXiv:2502.20580), each put to a test, and what came out: C1 to C8. Then what this project adds in the broadcast form, by
which blocks train apart: the gap to backpropagation, over the number of blocks and over `r`. This page is generated from
`benchmarks/results` by `python -m benchmarks.claims --page`; `--check` compares it. Every figure is from a stored run,
every verdict is computed from the stored figures.

- **Runs**: every method tries the same grid of learning rates and weight decays with seed 0, and what is best on the
  last sixth of the training split is repeated with seeds 1, 2, …. The test split is seen only with what was chosen.
  Feedback with a rate of its own (the rules `normative` and `local`) tries as many pairs of rates instead. C8, BLOCKS and
  DIMENSION show courses, and choose nothing: one rate for all, also for backpropagation.
  All methods on a network have the same initial weights, order of the data, schedule and number of trials.
- **Figures** are means ± standard deviations over seeds, in % of the test split, after the last step.
- **Matches**: {CRITERION}
"""
BUDGET = """\
- **Budget**: the settings are for two cores; the results below took {minutes:.0f} minutes on one of them in all, runs
  that claims share counted once for each. Such runs are far shorter than the paper's, and short runs exaggerate the gap
  of everything whose feedback must be learned first. Where a GPU is found, larger settings are used.
"""

LONG = """\
## Long runs

`python -m benchmarks.gap`. The broadcast form with ten times the work and more, all training samples, and the control
of blocks that stay as drawn (*gap*, *dimension*); on networks with a residual stream (*residual*). With one rate for all,
which shows what costs much, and doesn't rank what is near: what was tried with the error of the hidden state, on small
networks of that kind (*leads*); on the usual networks and samples, activations in fewer bytes (*formats*), and the error
at every layer of two blocks beside that at their ends (*layers*).
*Gap* is to backpropagation by the same optimiser, in bold
where it is beyond the target; a control's score is in bold where the default isn't ahead of it by 2 standard errors;
*behind fp32* is to the same rule with whole numbers. Where the best rate is the last one of the grid, others beyond
it are tried, at most two, by every rule; *lowest* and *highest* say where it still was the last.
"""
NO_RESULT = "no stored result"
_GAP = closing.CLAIM.name


def write_page(places: Places, figures: bool = False) -> None:
    """Write the pages, and redraw all figures if asked to."""
    if figures:
        for name in stored_claims(places):
            draw_stored(name, places)
    places.docs.mkdir(parents=True, exist_ok=True)
    for path, text in _pages(places).items():
        path.write_text(text)


def check_page(places: Places) -> int:
    """Return 0 if the pages are what the stored results give, else 1 with a message."""
    for path, text in _pages(places).items():
        if not path.exists() or path.read_text() != text:
            print(f"{path} is out of date; run python -m benchmarks.claims --page", file=sys.stderr)
            return 1
    return 0


def _pages(places: Places) -> dict[Path, str]:
    pages = {places.docs / "results.md": page(places)}
    usual = stored_claims(places).get(_GAP)
    rows = gap_rows(places.results, usual[1] if usual else None)
    if rows and places.readme.exists():
        with made_by_this_version(_GAP):
            pages[places.readme] = updated(places.readme, "gap", closing.summary(rows))
    return pages


def page(places: Places) -> str:
    """Return the page."""
    found = stored_claims(places)
    sections = [_section(name, found.get(name)) for name in MODULES]
    minutes = sum(result["seconds"] for _, result in found.values()) / 60
    return "\n".join([INTRO + BUDGET.format(minutes=minutes), _summary(found), *sections, *_long(places)])


def _summary(found: Mapping[str, tuple[Claim, Result]]) -> str:
    """Return the verdicts at a glance, each with the first sentence of its reason."""
    rows = []
    for name in MODULES:
        verdict, reason = NO_RESULT, ""
        if name in found:
            claim, result = found[name]
            with made_by_this_version(name):
                verdict, reason = claim.judge(result)
            verdict, reason = f"**{verdict}**", f"{reason.split('. ')[0].rstrip('.')}."
        rows.append((f"[{name}](#{name.lower()})", load(name).title, verdict, reason))
    return f"## Summary\n\n{markdown_table(('', 'claim', 'verdict', 'why'), rows)}\n"


def _section(name: str, found: tuple[Claim, Result] | None) -> str:
    claim = load(name)
    head = f"## {name}\n\n*{claim.title}.*\n"
    if found is None:
        return f"{head}\nThere is {NO_RESULT}; `python -m benchmarks.claims {name}` makes one.\n"
    result = found[1]
    with made_by_this_version(name):
        verdict, reason = claim.judge(result)
        tables = claim.tables(result)
    how = (claim.judge.__doc__ or "").strip()
    return (
        f"{head}\n**{verdict.capitalize()}.** {reason}\n\n"
        f"![{claim.title}](figures/claim-{name}.png)\n\n"
        f"{tables}\n\n"
        f"*Verdict*: {' '.join(how.split())}\n\n"
        f"{_made_by(result)}\n\n"
        f"<details>\n<summary>Configuration</summary>\n\n{configuration(result['configuration'])}\n\n</details>\n"
    )


def _long(places: Places) -> list[str]:
    """Return the sections of the long grids: those with stored results, and which have none."""
    sections = [
        f"### {name}\n\n{table}\n\n{_hours(result)}\n"
        for name, result, table in stored_tables(places.results)
    ]
    missing = [
        f"`python -m benchmarks.gap {grid} --rows {','.join(rows)}`"
        for grid, rows in missing_rows(places.results).items()
    ]
    return [LONG, *sections, *([f"There is {NO_RESULT} yet of {'; '.join(missing)}.\n"] if missing else [])]


def _hours(result: Result) -> str:
    return f"*Made by* `{result['command']}`; its runs took {result['seconds'] / 3600:.1f} hours of one core."


def _made_by(result: Result) -> str:
    environment = result["environment"]
    minutes = result["seconds"] / 60
    return (
        f"*Made by* `{result['command']}` on {result['date']} in {minutes:.1f} minutes of running on "
        f"{environment['device']} ({environment['machine']}, threads: {environment['threads']}, "
        f"Python {environment['python']}, torch {environment['torch']})."
    )


def configuration(found: Mapping[str, Any]) -> str:
    """Return a configuration as tables: one for each group of alike entries, one for single values."""
    groups = {name: value for name, value in found.items() if _is_group(value)}
    single = {name: value for name, value in found.items() if name not in groups}
    if single and all(isinstance(value, Mapping) for value in single.values()):
        groups, single = {"": single} | groups, {}
    parts = [_group(name, value) for name, value in groups.items()]
    if single:
        rows = [(name, _shown(value)) for name, value in single.items()]
        parts.append(markdown_table(("setting", "value"), rows))
    return "\n\n".join(parts)


def _is_group(value: object) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(one, Mapping) for one in value.values())
    )


def _group(name: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return entries and their settings, with the longer list down the page."""
    keys = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    values = {
        label: {key: _shown(entry[key]) if key in entry else "" for key in keys}
        for label, entry in entries.items()
    }
    if len(entries) > len(keys):
        return markdown_table((name, *keys), [(label, *row.values()) for label, row in values.items()])
    return markdown_table((name, *entries), [(key, *(row[key] for row in values.values())) for key in keys])


def _shown(value: object) -> str:
    """Return a value in a cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        joint = "; " if any(isinstance(one, Mapping) for one in value) else ", "
        return joint.join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
