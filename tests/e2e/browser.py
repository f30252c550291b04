"""A real browser for tests: Debian's Chromium, driven from an environment of its own that is made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from command import SECONDS
from filelock import FileLock

PINS = Path(__file__).parent / "browser.txt"
FOLDER = Path(__file__).parents[2] / ".venv-browser"
ENVIRONMENT = FOLDER / "environment"


def chromium() -> Any:
    """Return a started driver's browser type and where the browser is, or skip and say what is missing."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium (Debian's package chromium)")
    FOLDER.mkdir(exist_ok=True)
    with FileLock(FOLDER / "lock"):
        stamp = ENVIRONMENT / "complete"
        if not stamp.exists() or stamp.read_text() != PINS.read_text():
            try:
                venv.create(ENVIRONMENT, clear=True, with_pip=True)
                install = [ENVIRONMENT / "bin/python", "-m", "pip", "install", "--quiet", "-r", PINS]
                subprocess.run(install, check=True, capture_output=True, text=True, timeout=120)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"playwright can't be installed: {getattr(error, 'stderr', None) or error}")
            stamp.write_text(PINS.read_text())
    packages = sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT)})
    if packages not in sys.path:
        sys.path.append(packages)  # last: nothing of this environment gives way
    from playwright.sync_api import sync_playwright

    return sync_playwright(), program


@contextmanager
def browsing() -> Iterator[Any]:
    """Give a browser; every page of it is made by `opened`."""
    driver, program = chromium()
    with driver as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Give an empty page; when it is left, no script of anybody else's has run in it, and it asked nobody else."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(urlsplit(request.url).hostname))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "console",
        lambda line: said.append(line.text) if "Content Security Policy" in line.text else None,
    )
    try:
        yield page
        assert set(filter(None, asked)) == {"127.0.0.1"} and said == []
    finally:
        context.close()


def until(what: Callable[[], Any], why: str) -> None:
    """Wait for something that the page comes to."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.05)
