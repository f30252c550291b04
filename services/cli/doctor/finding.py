"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a finding bears on training."""

    ok = "ok"
    warning = "warning"
    """Training starts, but is slower than it could be, or some of it fails."""
    problem = "problem"
    """Training, or all of it that needs this, would fail."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes
    ----------
    check
        What was looked at, in a word or two.
    state
        How it bears on training.
    found
        What is there.
    todo
        What to do about it; nothing where all is well.
    """

    check: str
    state: State
    found: str
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding with which all is well."""
    return Finding(check, State.ok, found)


def warning(check: str, found: str, todo: str) -> Finding:
    """Return a finding with which training starts all the same."""
    return Finding(check, State.warning, found, todo)


def problem(check: str, found: str, todo: str) -> Finding:
    """Return a finding with which training fails."""
    return Finding(check, State.problem, found, todo)
