"""What a shell is told when somebody presses the tab key.

Nothing else is printed, and no error ends it: who completes a word wants no message.
"""

from __future__ import annotations

from contextlib import suppress

import typer

from lowdimfa.errors import LowdimfaError

ANSWER_SECONDS = 0.3
"""Longest wait for the service: a person waits for the answer."""

MOST_JOBS = 50
"""Newest jobs that are offered."""


def settings(incomplete: str) -> list[str]:
    """Return the settings that begin so, ``train.epochs=``, with values where these are few."""
    from lowdimfa.services.cli.setting_words import WORDS

    return [word for word in WORDS.splitlines() if word.startswith(incomplete)]


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the service's jobs that begin so; none if it doesn't answer at once."""
    from lowdimfa.services.cli.connection import connection_of
    from lowdimfa.services.coordinator.client import CoordinatorClient

    # Where the service listens is an option or a variable; values of options that aren't there yet are None.
    given = {name: value for name, value in ctx.params.items() if value is not None}
    with suppress(LowdimfaError):
        connection = connection_of(given | {"liveness": ANSWER_SECONDS})
        with CoordinatorClient(connection) as client:
            found = client.jobs(limit=MOST_JOBS)
            return [job["id"] for job in found if job["id"].startswith(incomplete)]
    return []
