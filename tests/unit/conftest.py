"""What the unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a report's figures as they were made: to draw one takes a second, and says nothing of the page's words."""
    from lowdimfa.services.monitoring.report.style import Picture  # late: it imports Matplotlib

    monkeypatch.setattr(Picture, "png", lambda picture: b"")
