"""The live page in a real browser, as somebody at a keyboard uses it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browsing, opened, until
from command import DIGITS, Going, settings
from forks import Forks
from service import Service

pytestmark = pytest.mark.timeout(3600)  # a page that stands still is noticed by `until`
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)<"
LONG = {"train__epochs": 100_000, "model__blocks": 2, "run__evaluate_every_epochs": 100}
UNEQUAL_NAMES = """() => {
  fillBlocks(["block 1", "block 1, replica 12"].map((name) => ({name, text: "", parts: []})));
  const boxes = [...document.querySelectorAll(".bar")].map((bar) => bar.getBoundingClientRect());
  return boxes.map((box) => [box.left, box.width]);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as made:
        yield made


@contextmanager
def live_run(forks: Forks, run_dir: Path) -> Iterator[tuple[Going, str]]:
    """Begin a run that says little, and give the address of its page."""
    command = ("train", DIGITS, "--engine", "local", "--live", "--run-dir", run_dir)
    with Going(forks.start(*command, *settings(**LONG))) as going:
        assert going.process.stdout is not None
        yield going, going.process.stdout.readline().removeprefix("live page").strip()


def points(page: Any, chart: str) -> int:
    """Return how many points a curve has, 0 before it is drawn."""
    return int(
        page.evaluate(
            f"typeof drawn == 'object' && drawn['{chart}'] ? drawn['{chart}'].plot.data[0].length : 0"
        )
    )


def test_a_run_is_seen_moving_and_stopped_by_keyboard_and_nothing_of_its_name_is_run(
    browser: Any, forks: Forks, tmp_path: Path
) -> None:
    with live_run(forks, tmp_path / HOSTILE) as (going, address), opened(browser, 400) as page:
        page.goto(address.partition("#")[0] + "#wrong")
        page.get_by_text("open the address that").wait_for()
        assert page.url.endswith("/login") and page.context.cookies() == []
        page.goto("about:blank")
        page.goto(address)
        page.get_by_role("heading", name=HOSTILE).wait_for()
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and "#" not in page.url
        until(lambda: points(page, "loss") > 1, "no curve")
        before = points(page, "loss")
        until(lambda: points(page, "loss") > before, "the curve stands still")
        page.context.set_offline(True)
        until(lambda: "No answer since" in page.locator("#connection").inner_text(), "nothing is said of it")
        before = points(page, "loss")
        page.context.set_offline(False)
        until(lambda: points(page, "loss") > before, "the page does not come back by itself")
        until(lambda: not page.locator("#connection").inner_text(), "it still says that nobody answers")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 400 and page.locator("img").count() == 0
        page.get_by_role("button", name="Stop", exact=True).focus()
        page.keyboard.press("Enter")
        assert going.end().code == 128 + signal.SIGINT
        until(lambda: page.locator(".title .state").inner_text() == "stopped", "the end is not told")
        until(lambda: "Over" in page.locator("#connection").inner_text(), "a page without a run says nothing")
        assert not page.get_by_role("button", name="Stop").is_visible()


def test_a_job_is_submitted_seen_moving_stopped_and_resumed(browser: Any, served: Service) -> None:
    with opened(browser, 1600) as page:
        page.goto(served.page)
        job = served.submit(**LONG)
        page.get_by_role("link", name=job).click()  # which appears by itself
        page.wait_for_url(f"**/jobs/{job}")  # with all its scripts
        until(lambda: points(page, "loss") > 1, "no curve")
        until(lambda: page.locator(".block").count() == 2, "nothing is known of the blocks")
        (left, width), other = page.evaluate(UNEQUAL_NAMES)
        assert other == [left, width] and width > 100, "bars of unequal length can't be compared"
        before = page.locator("[data-text=steps]").inner_text()
        until(lambda: page.locator("[data-text=steps]").inner_text() != before, "the job stands still")
        page.get_by_text("Specification").click()
        assert "lowdimfa.models:mlp" in page.locator("details pre").last.inner_text()
        page.get_by_role("button", name="Stop", exact=True).click()
        state = page.locator(".title .state")
        until(lambda: state.inner_text() == "stopped", "the job is not stopped")
        page.get_by_role("button", name="Resume").click()
        until(lambda: state.inner_text() in ("queued", "starting", "running"), "the job is not resumed")
        served.json("stop", job, "--now")
        until(lambda: state.inner_text() == "stopped", "a stop by somebody else is not seen")
        assert json.loads(page.request.get(f"{served.page}/jobs/{job}/news").text())["over"]
