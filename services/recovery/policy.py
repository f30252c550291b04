"""Whether a run goes on after a failure, how, and after what pause: for the trainer, and for whoever replaces it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lowdimfa.errors import (
    BlockWithoutRoomError,
    LowdimfaError,
    NoRoomError,
    NotFiniteError,
    PeerError,
    ProtocolError,
    RecoveriesUsedUpError,
    ResourceError,
)
from lowdimfa.services.monitoring.live.curve import is_number
from lowdimfa.services.spec import Specification

RecoveryPolicy = Literal["restart", "rejoin"]
"""``restart``: all blocks from a checkpoint. ``rejoin``: only the lost ones, from their snapshots."""

TRAINER_LOST = "the trainer's process was lost"

FIRST_PAUSE = 0.1
"""Seconds before the second recovery within the window; each further one doubles them. The first needs no pause."""

PAUSE_LIVENESS = 1 / 8
"""The longest pause, as a part of the liveness: a pause must not look like a lost process."""


@dataclass(frozen=True)
class BlocksFailed:
    """What the blocks of a run came to, under a trainer that is well."""

    error: LowdimfaError

    @property
    def reason(self) -> str:
        """What happened, for people."""
        return self.error.message


@dataclass(frozen=True)
class TrainerLost:
    """A trainer's process is gone, or was ended because it was silent for too long."""

    silent: bool = False

    @property
    def reason(self) -> str:
        """What happened, for people."""
        if self.silent:
            return f"{TRAINER_LOST}: it gave no answer for too long; raise run.liveness_seconds if it may be that busy"
        return TRAINER_LOST


@dataclass(frozen=True)
class TrainerGaveUp:
    """A trainer reported an error before it ended.

    Attributes
    ----------
    error
        Its last word.
    vanished
        Whether its process then went without returning: its cluster may have gone away under it.
    began
        Whether its run had begun.
    """

    error: LowdimfaError
    vanished: bool
    began: bool

    @property
    def reason(self) -> str:
        """What happened, for people."""
        return TRAINER_LOST if self.vanished else f"the trainer gave up: {self.error.message}"


Failure = BlocksFailed | TrainerLost | TrainerGaveUp


@dataclass(frozen=True)
class Rules:
    """What a specification says of recoveries.

    Attributes
    ----------
    on_failure
        None if there shall be none.
    most
        Recoveries that are granted within the window.
    window
        Seconds after which a recovery no longer counts.
    longest_pause
        Seconds that no pause exceeds.
    """

    on_failure: RecoveryPolicy | None
    most: int
    window: float
    longest_pause: float

    @classmethod
    def of(cls, specification: Specification) -> Rules:
        """Return the rules of a specification."""
        run = specification.run
        policy = None if run.on_failure == "fail" else run.on_failure
        pause = PAUSE_LIVENESS * run.liveness_seconds
        return cls(policy, run.max_recoveries, run.recovery_window_seconds, pause)


@dataclass(frozen=True)
class History:
    """What a run went through.

    Attributes
    ----------
    begun
        When its recoveries began, by one clock.
    not_finite
        Whether one was for a number that wasn't finite.
    """

    begun: tuple[float, ...] = ()
    not_finite: bool = False


@dataclass(frozen=True)
class GoOn:
    """The run goes on.

    Attributes
    ----------
    policy
        How.
    pause
        Seconds to wait before: none for the first recovery within the window, then twice as many from time to time,
        between half and all of them by the draw, so that many jobs that lost the same machine don't return in step.
    history
        Of the run, this recovery included.
    """

    policy: RecoveryPolicy
    pause: float
    history: History

    @property
    def recovery(self) -> int:
        """Which recovery of the run it is, those out of the window included."""
        return len(self.history.begun)


@dataclass(frozen=True)
class End:
    """The run ends: its specification wants no recovery, another attempt would not help, or it had too many.

    Attributes
    ----------
    why
        Which of them.
    words
        What happened, for people.
    """

    why: Literal["policy", "incurable", "used up"]
    words: str


def decide(failure: Failure, rules: Rules, history: History, now: float, draw: float) -> GoOn | End:
    """Say what becomes of a run after a failure.

    Parameters
    ----------
    failure
        What happened.
    rules
        What its specification says.
    history
        What it went through before.
    now
        By the clock of the history.
    draw
        A random number from 0 to 1.
    """
    if rules.on_failure is None:
        return End("policy", failure.reason)
    if not _may_pass(failure, history):
        return End("incurable", failure.reason)
    recent = sum(now - moment < rules.window for moment in history.begun)
    if recent >= rules.most:
        losses = f"that makes {rules.most + 1:,} losses within {rules.window:g} s"
        allowed = f"more than run.max_recoveries ({rules.most:,}) allows"
        return End("used up", f"{failure.reason}; {losses}, {allowed}")
    # The exponent is bounded, because a float's is.
    pause = min(rules.longest_pause, FIRST_PAUSE * 2.0 ** min(recent - 1, 60)) if recent else 0.0
    not_finite = isinstance(failure, BlocksFailed) and isinstance(failure.error, NotFiniteError)
    after = History((*history.begun, now), history.not_finite or not_finite)
    policy = rules.on_failure if isinstance(failure, BlocksFailed) else "restart"
    return GoOn(policy, pause * (0.5 + 0.5 * draw), after)


def _may_pass(failure: Failure, history: History) -> bool:
    """Whether the same steps may go well another time."""
    match failure:
        case TrainerLost():
            return True
        case BlocksFailed(NotFiniteError()):
            # A fault of the hardware, once; training that diverges comes to it again.
            return not history.not_finite
        case BlocksFailed(error):
            return isinstance(error, PeerError | ProtocolError)
        case TrainerGaveUp(RecoveriesUsedUpError()):
            return False
        case TrainerGaveUp(NoRoomError() | BlockWithoutRoomError(), began=began):
            return began  # a lost block found no room; a job that never had room waits for it anyway
        case TrainerGaveUp(error, vanished=vanished):
            torn = type(error) is LowdimfaError or isinstance(error, ResourceError)
            return isinstance(error, PeerError) or (vanished and torn)


def history_in(events: Iterable[Mapping[str, Any]]) -> History:
    """Return what a run went through since a person last resumed it, by the events of its journal, in Unix seconds.

    Whoever replaces a trainer counts by the journal, because the trainer that counted last is gone. A run that ended and
    then started without a recovery between was resumed by a person, who begins with a full budget.
    """
    moments: list[float] = []
    not_finite = ended = False
    for event in events:
        match event["event"]:
            case "recovering":
                moment = noted_at(event)
                moments += [] if moment is None else [moment]
                not_finite = not_finite or event.get("code") == NotFiniteError.code
                ended = False
            case "started":
                if ended:
                    moments, not_finite = [], False
                ended = False
            case "failed" | "finished":
                ended = True
    return History(tuple(moments), not_finite)


def noted_at(event: Mapping[str, Any]) -> float | None:
    """Return when an event was noted, in Unix seconds; None if it does not say: a job's own code may have written it."""
    moment = event.get("time")
    return float(moment) if is_number(moment) else None
