"""What the live page answers with: pages from templates, JSON, files; with headers that keep a browser strict."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lowdimfa.services.monitoring.live.source import Refusal

_FOLDER = Path(__file__).parent

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Of every answer."""

_WORTH_PACKING = 1400
"""Bytes; less fits into one packet."""


@dataclass
class Answer:
    """An answer to a request."""

    body: bytes = b""
    kind: str = "text/html"
    status: HTTPStatus = HTTPStatus.OK
    headers: list[tuple[str, str]] = field(default_factory=list)
    caching: str = "no-store"

    def all_headers(self) -> list[tuple[str, str]]:
        """Return all headers."""
        return [
            ("Content-Type", f"{self.kind}; charset=utf-8"),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", self.caching),
            *HEADERS,
            *self.headers,
        ]

    def packed(self) -> Answer:
        """Compress a large body, for a browser that takes that."""
        if len(self.body) > _WORTH_PACKING:
            self.body = gzip.compress(self.body, 1)
            self.headers.append(("Content-Encoding", "gzip"))
        return self


def redirect(path: str, *headers: tuple[str, str]) -> Answer:
    """Return the answer that sends a browser on, with GET."""
    return Answer(status=HTTPStatus.SEE_OTHER, headers=[("Location", path), *headers])


def as_bytes(text: str) -> bytes:
    """Return a text as it travels; half of a surrogate pair, which can't, becomes a question mark."""
    return text.encode(errors="replace")


def as_json(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Return data for the page's own script."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Answer(text.encode(), "application/json", status)


def job_path(job_id: str) -> str:
    """Return the path of a job's page."""
    return f"/jobs/{quote(job_id, safe='')}"


def _read_files() -> dict[str, tuple[str, bytes]]:
    folder = _FOLDER / "static"
    return {
        path.relative_to(folder).as_posix(): (_TYPES[path.suffix], path.read_bytes())
        for path in folder.rglob("*")
        if path.suffix in _TYPES
    }


@cache
def files() -> Files:
    """Return the templates and files of this process."""
    return Files()


class Files:
    """The templates, and the files beside them: read once, so that no path of a request ever names one on the disk."""

    def __init__(self) -> None:
        self._files = _read_files()
        self._templates = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.globals |= {"static": self._address, "job_path": job_path}

    def page(self, template: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Answer:
        """Return a page."""
        return Answer(as_bytes(self._templates.get_template(template).render(values)), status=status)

    def static(self, name: str) -> Answer:
        """Return a file; its address changes with its content, so that a browser may keep it.

        Raises
        ------
        Refusal
            There is no such file.
        """
        if name not in self._files:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such file")
        kind, content = self._files[name]
        return Answer(content, kind, caching="max-age=31536000, immutable")

    def _address(self, name: str) -> str:
        return f"/static/{name}?{hashlib.sha256(self._files[name][1]).hexdigest()[:12]}"
