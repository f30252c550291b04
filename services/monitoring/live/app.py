"""The live page as a WSGI application: which address gives what, to whom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from lowdimfa.services.monitoring.live.answers import Answer, as_bytes, as_json, files, job_path, redirect
from lowdimfa.services.monitoring.live.sessions import (
    LONGEST_TOKEN,
    Environ,
    Sessions,
    require_known_host,
)
from lowdimfa.services.monitoring.live.source import Refusal, Source, Visitor
from lowdimfa.services.monitoring.live.texts import done, shown
from lowdimfa.services.monitoring.live.watching import Watching

LONGEST_FORM = 4096

_log = logging.getLogger(__name__)


class LivePage:
    """Answers requests.

    Parameters
    ----------
    source
        Has the jobs.
    sessions
        Knows the visitors.

    Attributes
    ----------
    watching
        What is kept of jobs that somebody looks at.
    """

    def __init__(self, source: Source, sessions: Sessions) -> None:
        self._source, self._sessions = source, sessions
        self._files, self.watching = files(), Watching(source)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        try:
            answer = self._answer(environ)
        except Refusal as refusal:
            answer = self._refused(environ, refusal)
        except Exception:
            _log.exception("a page could not be made")
            answer = self._refused(
                environ, Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the log has the reason")
            )
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            answer = answer.packed()
        start_response(f"{answer.status.value} {answer.status.phrase}", answer.all_headers())
        return [answer.body]

    def _answer(self, environ: Environ) -> Answer:
        parts = [part for part in str(environ.get("PATH_INFO", "")).split("/") if part]
        if parts[:1] == ["static"] and environ["REQUEST_METHOD"] == "GET":
            return self._files.static("/".join(parts[1:]))
        query = {key: values[0] for key, values in parse_qs(str(environ.get("QUERY_STRING", ""))).items()}
        match environ["REQUEST_METHOD"]:
            case "GET":
                return self._get(environ, parts, query)
            case "POST":
                return self._post(environ, parts)
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET, HEAD and POST")

    def _get(self, environ: Environ, parts: list[str], query: dict[str, str]) -> Answer:
        if parts == ["login"]:
            return self._login_page(environ)
        visitor = self._entered(environ)
        match parts:
            case [] if self._source.only:
                return redirect(job_path(self._source.only))
            case []:
                return self._jobs_page(environ, visitor, query.get("page", ""))
            case ["jobs.json"]:
                return as_json([_line(job) for job in self._source.jobs(visitor, query.get("page", ""))[0]])
            case ["jobs", job_id]:
                return self._job_page(environ, visitor, job_id)
            case ["jobs", job_id, "news"]:
                return as_json(self.watching.news(visitor, job_id, _position(query)))
            case ["jobs", job_id, "logs"]:
                return as_json(self._source.logs(visitor, job_id))
            case ["jobs", job_id, "logs.txt"]:
                logs = self._source.logs(visitor, job_id)
                text = "\n".join(f"==> {name} <==\n{lines}" for name, lines in logs.items())
                return Answer(as_bytes(text), "text/plain")
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, environ: Environ, parts: list[str]) -> Answer:
        form = _form(environ)
        self._sessions.require_own(environ, form.get("form_token", ""))
        if parts == ["login"]:
            return self._log_in(environ, form.get("token", "").strip())
        if parts == ["logout"]:
            return redirect("/login", self._sessions.end())
        visitor = self._entered(environ)
        match parts:
            case ["jobs", job_id, "stop"]:
                self._source.stop(visitor, job_id, form.get("mode") == "now")
            case ["jobs", job_id, "resume"]:
                self._source.resume(visitor, job_id)
            case _:
                raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        return redirect(job_path(job_id))

    def _entered(self, environ: Environ) -> Visitor:
        visitor = self._sessions.visitor(environ)
        if not self._source.enter(visitor):
            require_known_host(environ)
        return visitor

    def _log_in(self, environ: Environ, token: str) -> Answer:
        if not token or len(token) > LONGEST_TOKEN or not token.isascii():
            return self._login_page(environ, "this is no token", HTTPStatus.UNAUTHORIZED)
        try:
            self._source.enter(Visitor(f"Bearer {token}", str(environ.get("REMOTE_ADDR", ""))))
        except Refusal as refusal:
            return self._login_page(environ, refusal.message, refusal.status)
        return redirect("/", self._sessions.begin(token))

    def _login_page(self, environ: Environ, wrong: str = "", status: HTTPStatus = HTTPStatus.OK) -> Answer:
        return self._page(environ, "login.html", status, wrong=wrong, who="")

    def _jobs_page(self, environ: Environ, visitor: Visitor, page: str) -> Answer:
        jobs, following = self._source.jobs(visitor, page)
        return self._page(
            environ,
            "jobs.html",
            who=self._source.enter(visitor),
            jobs=[_line(job) for job in jobs],
            page=page,
            following=following,
        )

    def _job_page(self, environ: Environ, visitor: Visitor, job_id: str) -> Answer:
        news = self.watching.news(visitor, job_id, None)
        return self._page(
            environ,
            "job.html",
            who=self._source.enter(visitor),
            job_id=job_id,
            news=news,
            specification=self._source.specification(visitor, job_id),
        )

    def _page(
        self, environ: Environ, template: str, status: HTTPStatus = HTTPStatus.OK, **values: Any
    ) -> Answer:
        token = self._sessions.form_token(environ)
        return self._files.page(template, status, form_token=token, only=self._source.only, **values)

    def _refused(self, environ: Environ, refusal: Refusal) -> Answer:
        path = str(environ.get("PATH_INFO", ""))
        if path.endswith(("/news", "/logs", ".json")):
            return as_json({"message": refusal.message}, refusal.status)
        if refusal.status is HTTPStatus.UNAUTHORIZED and environ["REQUEST_METHOD"] == "GET":
            return redirect("/login")
        return self._page(environ, "refused.html", refusal.status, refusal=refusal, who="")


def _line(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the list shows of a job."""
    return {"id": job["id"], "path": job_path(job["id"]), "done": done(job), "texts": shown(job)}


def _position(query: dict[str, str]) -> int | None:
    text = query.get("after", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def _form(environ: Environ) -> dict[str, str]:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = -1
    if not 0 <= length <= LONGEST_FORM:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"forms have at most {LONGEST_FORM} bytes")
    try:
        body = environ["wsgi.input"].read(length).decode("utf-8", "replace")
    except OSError as error:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the form did not arrive") from error
    return {key: values[0] for key, values in parse_qs(body).items()}
