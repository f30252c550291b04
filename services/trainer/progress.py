"""How far a run is, how fast, and how well: its ``progress`` events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from lowdimfa.network import StepResult
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.language import Language

RECENT_SECONDS, FEWEST_MARKS = 10.0, 20
"""Speed is that of the last seconds; of slow steps it is that of as many, or of bursts of them."""


class ProgressMeter:
    """Turns step results into ``progress`` events: means over the last steps' samples, speed, time left.

    Parameters
    ----------
    emit
        Records an event.
    drawn
        Returns how many samples so many steps of the run have.
    steps_per_epoch, total_steps
        Of the run.
    every
        Steps between events.
    language
        Makes the numbers of a language model.
    """

    def __init__(
        self,
        emit: Callable[..., Event],
        *,
        drawn: Callable[[int], int],
        steps_per_epoch: int,
        total_steps: int,
        every: int,
        language: Language | None = None,
    ) -> None:
        self._emit = emit
        self._drawn = drawn
        self._steps_per_epoch = steps_per_epoch
        self._total = total_steps
        self._every = every
        self._language = language or Language()
        self._recent: deque[StepResult] = deque(maxlen=every)
        self._marks: deque[tuple[float, int, int]] = deque()
        self._counted = 0
        self.last_step = 0

    def begin(self, step: int) -> None:
        """Start measuring speed from a step boundary, such as after an evaluation."""
        self.last_step = step
        while self._recent and self._recent[-1].step >= step:
            self._recent.pop()  # of a course of the run that was given up
        self._marks.clear()
        self._marks.append((time.monotonic(), step, self._counted))

    def take(self, results: Sequence[StepResult]) -> None:
        """Take in steps, in order, that have finished by now."""
        if results:
            self._counted += sum(result.counted for result in results)
            self._mark(results[-1].step + 1)
        for result in results:
            self._recent.append(result)
            done = self.last_step = result.step + 1
            if done % self._every == 0 or done == self._total:
                self._report(done)

    def _mark(self, done: int) -> None:
        """Note when a step had finished; steps come in bursts, so that of several the last one alone is known."""
        now = time.monotonic()
        self._marks.append((now, done, self._counted))
        while len(self._marks) > FEWEST_MARKS and now - self._marks[0][0] > RECENT_SECONDS:
            self._marks.popleft()

    def _report(self, done: int) -> None:
        (start, first, counted_before), (end, last, counted) = self._marks[0], self._marks[-1]
        seconds = end - start
        per_second = 1 / seconds if seconds > 0 else 0.0
        rate = (last - first) * per_second
        loss, of = self._loss()
        self._emit(
            "progress",
            step=done,
            steps=self._total,
            epoch=(done - 1) // self._steps_per_epoch + 1,
            loss=loss,
            accuracy=sum(result.correct for result in self._recent) / of if of else None,
            samples=self._drawn(done),
            samples_per_second=(self._drawn(last) - self._drawn(first)) * per_second,
            eta_seconds=(self._total - done) / rate if rate else None,
            **self._language.trained(loss, of, (counted - counted_before) * per_second),
        )

    def _loss(self) -> tuple[float, int]:
        """Return the mean loss of the last steps, and how many predictions count in them; batches may differ in size."""
        of = sum(result.counted for result in self._recent)
        sizes = [
            result.counted if of else self._drawn(result.step + 1) - self._drawn(result.step)
            for result in self._recent
        ]
        losses = (result.loss * size for result, size in zip(self._recent, sizes, strict=True))
        return sum(losses) / sum(sizes), of
