"""A source of the live page in memory, and a browser that is no more than a WSGI call."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lowdimfa.services.monitoring.live.app import LivePage
from lowdimfa.services.monitoring.live.sessions import Sessions
from lowdimfa.services.monitoring.live.source import Fields, Look, Refusal, Visitor

KEY = b"a" * 43 + b"="
TOKENS = {"Bearer reader-token": "reader", "Bearer owner-token": "owner"}


class MemoryJobs:
    """Jobs whose texts are given; with tokens, the owner may change them and the reader may look."""

    only = ""

    def __init__(
        self, jobs: dict[str, Fields] | None = None, *, tokens: bool = True, text: str = "a: 1"
    ) -> None:
        self.known = {"job-1": {"state": "running"}} if jobs is None else jobs
        self.tokens, self.text = tokens, text
        self.events: list[dict[str, Any]] = []
        self.done: list[tuple[str, str, str]] = []

    def enter(self, visitor: Visitor) -> str:
        if not self.tokens:
            return ""
        if visitor.authorization not in TOKENS:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "the token is not known here")
        return TOKENS[visitor.authorization]

    def jobs(self, visitor: Visitor, page: str) -> tuple[list[Fields], str]:
        self.enter(visitor)
        return [fields | {"id": job_id} for job_id, fields in self.known.items()], ""

    def look(self, visitor: Visitor, job_id: str, after: int) -> Look:
        name, events = self.enter(visitor), self.events[after:]
        job = self._job(job_id) | {"id": job_id}
        actions = ("stop",) if name in ("", "owner") else ()
        return Look(job, False, actions, Path("/nowhere"), events, after + len(events), False)

    def specification(self, visitor: Visitor, job_id: str) -> str:
        return self.text

    def logs(self, visitor: Visitor, job_id: str) -> dict[str, str]:
        self._job(job_id)
        return {"trainer": self.text}

    def stop(self, visitor: Visitor, job_id: str, now: bool) -> None:
        self._change(visitor, job_id, "now" if now else "stop")

    def resume(self, visitor: Visitor, job_id: str) -> None:
        self._change(visitor, job_id, "resume")

    def _change(self, visitor: Visitor, job_id: str, what: str) -> None:
        name = self.enter(visitor)
        if name == "reader":
            raise Refusal(HTTPStatus.FORBIDDEN, "needs the role 'submit'")
        self._job(job_id)
        self.done.append((name, job_id, what))

    def _job(self, job_id: str) -> Fields:
        if job_id not in self.known:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such job")
        return self.known[job_id]


class Reply:
    """What a request got."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = int(status.split()[0]), dict(headers), body
        self.text = body.decode("utf-8", "replace")


class Browser:
    """Asks a page, and keeps its cookie."""

    def __init__(self, jobs: Any = None, *, secure: bool = False, key: bytes = KEY) -> None:
        self.jobs = MemoryJobs() if jobs is None else jobs
        self._page = LivePage(self.jobs, Sessions(key, secure=secure, port=9465))
        self.cookie = ""

    def get(self, path: str, **environ: str) -> Reply:
        return self._ask("GET", path, b"", environ)

    def post(self, path: str, form: dict[str, str] | None = None, **environ: str) -> Reply:
        """Send a form with the page's token, unless another one is given."""
        form = {"form_token": self.form_token()} | (form or {})
        return self._ask("POST", path, urlencode(form).encode(), environ)

    def log_in(self, token: str) -> Reply:
        return self.post("/login", {"token": token})

    def form_token(self) -> str:
        page = self.get("/login")
        (token,) = {
            values["value"] for name, values in elements(page.text) if values.get("name") == "form_token"
        }
        return token or ""

    def _ask(self, method: str, path: str, body: bytes, environ: dict[str, str]) -> Reply:
        path, _, query = path.partition("?")
        begun: list[Any] = []
        request = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(body),
        }
        request |= {"CONTENT_LENGTH": str(len(body)), "HTTP_COOKIE": self.cookie, "REMOTE_ADDR": "127.0.0.1"}
        content = b"".join(
            self._page(
                {**request, "HTTP_HOST": "127.0.0.1:9465", **environ}, lambda *said: begun.extend(said)
            )
        )
        reply = Reply(begun[0], begun[1], content)
        if "Set-Cookie" in reply.headers:
            self.cookie = reply.headers["Set-Cookie"].partition(";")[0]
        return reply


def elements(text: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the elements of a page with their attributes, as a browser reads it."""
    found: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    reader = Reader()
    reader.feed(text)
    reader.close()
    yield from found
