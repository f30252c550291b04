"""The live page without a server: who gets what, what a browser is told to refuse, and that text stays text."""

from __future__ import annotations

import gzip
import json
import re
import time
from html import escape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_source import TOKENS, Browser, MemoryJobs, elements

from lowdimfa.services.monitoring.live import answers
from lowdimfa.services.monitoring.live.app import LONGEST_FORM
from lowdimfa.services.monitoring.live.texts import ABSENT

STARTED = {"event": "started", "time": 10.0, "blocks": 2, "step": 0, "steps": 900}
STATIC = Path(answers.__file__).parent / "static"
PATHS = (
    "/",
    "/login",
    "/jobs.json",
    "/jobs/job-1",
    "/jobs/job-1/news",
    "/jobs/job-1/logs",
    "/jobs/job-1/logs.txt",
)
HOSTILE = '<img src=x onerror=alert(1)></pre></title><script>alert(1)</script>"\' onload="alert(1)'


def owner() -> Browser:
    browser = Browser()
    assert browser.log_in("owner-token").status == 303
    return browser


@pytest.mark.parametrize("path", [*PATHS, "/static/live.css", "/static/../app.py", "/nothing", "/jobs/none"])
def test_every_answer_tells_the_browser_to_be_strict(path: str) -> None:
    for browser in (owner(), Browser()):
        for reply in (browser.get(path), browser.post(path), browser.post(path, {"form_token": "x"})):
            policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))
            assert policy.pop("default-src") == "'none'" and policy.pop("frame-ancestors") == "'none'"
            assert policy.pop("base-uri") == "'none'" and set(policy.values()) == {"'self'"}
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Referrer-Policy"] == "same-origin"
            assert reply.status in (200, 303, 401, 403, 404)
            assert int(reply.headers["Content-Length"]) == len(reply.body)


def test_pages_have_nothing_inline_and_name_no_other_host() -> None:
    browser = owner()
    browser.jobs.events = [{"event": "warning", "time": 0.0, "message": "x"}]
    for path in ("/", "/login", "/jobs/job-1", "/nothing"):
        for tag, attributes in elements(browser.get(path).text):
            assert tag not in ("style", "iframe", "object", "base") and "style" not in attributes
            assert tag != "script" or set(attributes) == {"src", "defer"}
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), attributes
    for file in STATIC.glob("*.*"):
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|insertAdjacent|eval\(", file.read_text()
        )


@pytest.mark.parametrize(("only", "label"), [("", "Submitted"), ("job-1", "Started")])
def test_a_run_without_a_service_was_started_and_not_submitted(only: str, label: str) -> None:
    browser = owner()
    browser.jobs.only = only
    said = re.findall(r"<dt>(Submitted|Started)</dt>", browser.get("/jobs/job-1").text)
    assert said == [label]


def test_the_chart_library_is_what_its_note_says() -> None:
    import hashlib

    note = (STATIC / "uplot" / "README.md").read_text()
    for name, digest in re.findall(r"`(uPlot\.\S+)` \| `(\w{64})`", note):
        assert hashlib.sha256((STATIC / "uplot" / name).read_bytes()).hexdigest() == digest
    assert "MIT License" in (STATIC / "uplot" / "LICENSE").read_text() and note.count("`uPlot.") == 2


@settings(max_examples=10)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=40).map(
        lambda text: text + HOSTILE
    )
)
def test_whatever_jobs_are_called_and_log_is_only_ever_text(text: str) -> None:
    fields = dict.fromkeys(("name", "owner", "state", "detail"), text)
    browser = Browser(MemoryJobs({text: fields, "job": fields}, tokens=False, text=text))
    plain = Browser(MemoryJobs(dict.fromkeys(("x", "job"), dict.fromkeys(fields, "x")), tokens=False))
    recovering = {
        "event": "recovering",
        "time": 0.0,
        "policy": text,
        "blocks": [0],
        "reason": text,
        "step": 1,
    }
    browser.jobs.events = [recovering, {"event": text, "message": text}]
    plain.jobs.events = [recovering | {"policy": "x", "reason": "x"}, {"event": "x", "message": "x"}]
    for path in ("/", "/jobs/job"):
        found, expected = browser.get(path), plain.get(path)
        assert [tag for tag, _ in elements(found.text)] == [tag for tag, _ in elements(expected.text)]
        assert [set(names) for _, names in elements(found.text)] == [
            set(names) for _, names in elements(expected.text)
        ]
    assert escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in browser.get("/jobs/job").text
    for path in ("/jobs/job/news", "/jobs/job/logs", "/jobs.json"):
        reply = browser.get(path)
        assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
        assert json.dumps(HOSTILE)[1:-1] in reply.text
    assert browser.get("/jobs/job/logs.txt").headers["Content-Type"] == "text/plain; charset=utf-8"


def test_whatever_a_run_says_its_page_comes_and_stays_small() -> None:
    browser = Browser(
        MemoryJobs({"job": {"state": "running", "name": "\ud800"}}, tokens=False, text="\udcff")
    )
    long, nan = "x" * 10**6, float("nan")
    recovering = {"event": "recovering", "time": 0.0, "policy": long, "reason": long, "step": 1}
    browser.jobs.events = [
        {"event": "warning", "time": nan, "message": f"\ud800{long}"},
        {"event": long, "time": 10**400},
        *[recovering | {"blocks": [0] * 10**5}, {"event": "recovered", "step": nan, "time": nan}] * 3,
        {"event": "progress", "step": 10**300, "steps": nan, "loss": float("inf")},
        {"event": "failed", "time": 0.0, "code": [], "message": long},
        *("text", 3, None, [], {}),
    ]
    for path in ("/", "/jobs.json", "/jobs/job", "/jobs/job/news", "/jobs/job/logs", "/jobs/job/logs.txt"):
        reply = browser.get(path)
        assert reply.status == 200 and len(reply.body) < 100_000


def test_nobody_sees_anything_without_a_token() -> None:
    browser = Browser()
    for path in PATHS:
        reply = browser.get(path)
        assert (reply.status, reply.headers.get("Location")) in (
            (303, "/login"),
            *([(200, None)] if path == "/login" else []),
            *([(401, None)] if path.endswith(("news", "logs", "json")) else []),
        )
        assert "job-1" not in reply.text
    assert browser.post("/jobs/job-1/stop").status == 401 and not browser.jobs.done
    for token in ("", "wrong", "reader-tokeN", "x" * 600, "né"):
        refused = browser.log_in(token)
        assert refused.status == 401 and "Set-Cookie" not in refused.headers and not browser.cookie
        assert token in ("", "wrong") or token not in refused.text


def test_a_session_hides_the_token_and_outlives_the_server() -> None:
    browser = owner()
    reply = browser.log_in("owner-token")
    name, _, rest = reply.headers["Set-Cookie"].partition("=")
    assert name == "lowdimfa-9465" and "owner-token" not in rest
    assert rest.split("; ")[1:] == ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"]
    again = Browser()
    again.cookie = browser.cookie
    assert again.get("/jobs/job-1").status == 200
    for cookie in (browser.cookie[:-4] + "AAAA", "lowdimfa-9465=x", "lowdimfa-9465=\u00e9", "x" * 99, 'a="'):
        again.cookie = cookie
        assert again.get("/jobs/job-1").status == 303
    other_key = Browser(key=b"b" * 43 + b"=")
    other_key.cookie = browser.cookie
    assert other_key.get("/").status == 303
    browser.post("/logout")
    assert browser.get("/").status == 303


def test_a_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    browser, now = owner(), time.time()
    monkeypatch.setattr("cryptography.fernet.time.time", lambda: now + 3600 * 12 - 60)
    assert browser.get("/").status == 200
    monkeypatch.setattr("cryptography.fernet.time.time", lambda: now + 3600 * 12 + 60)
    assert browser.get("/").status == 303


def test_with_tls_cookies_never_travel_in_the_clear() -> None:
    browser = Browser(secure=True)
    cookie = browser.log_in("owner-token").headers["Set-Cookie"]
    assert cookie.startswith("__Host-lowdimfa-9465=") and cookie.endswith("; Secure")


def test_a_token_that_is_taken_back_ends_its_session_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = owner()
    monkeypatch.delitem(TOKENS, "Bearer owner-token")
    assert browser.get("/").status == 303


def test_roles_decide_on_stop_and_resume() -> None:
    browser = owner()
    assert browser.post("/jobs/job-1/stop").headers["Location"] == "/jobs/job-1"
    assert browser.post("/jobs/job-1/stop", {"mode": "now"}).status == 303
    assert browser.post("/jobs/job-1/resume").status == 303
    assert browser.jobs.done == [("owner", "job-1", what) for what in ("stop", "now", "resume")]
    assert browser.post("/jobs/none/stop").status == 404
    browser.log_in("reader-token")
    refused = browser.post("/jobs/job-1/stop")
    assert refused.status == 403 and "needs the role" in refused.text and len(browser.jobs.done) == 3
    actions = {
        a["data-action"]: "hidden" in a
        for _, a in elements(browser.get("/jobs/job-1").text)
        if "data-action" in a
    }
    assert actions == {"stop": True, "now": True, "resume": True}


@pytest.mark.parametrize(
    "given_",
    [
        {"form": {"form_token": ""}},
        {"form": {"form_token": "\u00e9" * 8}},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "http://127.0.0.1:9999"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": "http://[::1"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
    ],
)
@pytest.mark.parametrize("tokens", [True, False])
def test_what_another_site_sends_changes_nothing(given_: dict[str, Any], tokens: bool) -> None:
    browser = Browser(MemoryJobs(tokens=tokens))
    if tokens:
        browser.log_in("owner-token")
    headers = {name: value for name, value in given_.items() if name != "form"}
    form = {"form_token": browser.form_token()} | given_.get("form", {})
    for path in ("/jobs/job-1/stop", "/jobs/job-1/resume", "/login", "/logout"):
        assert browser.post(path, form, **headers).status == 403
    assert not browser.jobs.done
    own = {"HTTP_ORIGIN": "http://127.0.0.1:9465", "HTTP_SEC_FETCH_SITE": "same-origin"}
    assert browser.post("/jobs/job-1/stop", **own).status == 303 and len(browser.jobs.done) == 1


def test_another_visitors_form_token_is_none() -> None:
    browser, stranger = owner(), Browser()
    assert browser.post("/jobs/job-1/stop", {"form_token": stranger.form_token()}).status == 403


def test_a_program_sends_its_token_and_needs_no_form() -> None:
    browser = Browser()
    header = {"HTTP_AUTHORIZATION": "Bearer owner-token"}
    assert browser.get("/jobs.json", **header).status == 200
    assert browser.post("/jobs/job-1/stop", {"form_token": ""}, **header).status == 303
    assert browser.get("/jobs.json", HTTP_AUTHORIZATION="Bearer wrong").status == 401


def test_without_tokens_no_other_name_leads_here() -> None:
    browser = Browser(MemoryJobs(tokens=False))
    for host in ("127.0.0.1:9465", "localhost:9465", "[::1]:9465", "[::1]", "coordinator:9465", "10.1.2.3"):
        assert browser.get("/jobs/job-1", HTTP_HOST=host).status == 200, host
    for host in ("evil.example:9465", "evil.example", "127.0.0.1.evil.example:9465", ""):
        assert browser.get("/jobs/job-1", HTTP_HOST=host).status == 403, host
        assert browser.get("/jobs/job-1/news", HTTP_HOST=host).status == 403, host
    with_tokens = owner()
    assert with_tokens.get("/jobs/job-1", HTTP_HOST="gpu.example.org:9465").status == 200


@pytest.mark.parametrize("other", ['a={"b":1}', 'x="', "a b=c", "\xe9=1", "expires", "f[x]=1", "k=v=w=="])
def test_cookies_of_other_servers_on_this_host_end_no_session(other: str) -> None:
    browser = owner()
    for cookies in (f"{other}; {browser.cookie}", f"{browser.cookie}; {other}"):
        assert browser.get("/", HTTP_COOKIE=cookies).status == 200


def test_a_form_that_does_not_arrive_is_no_failure_of_the_page(caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def read(self, length: int) -> bytes:
            raise TimeoutError("timed out")

    environ: dict[str, Any] = {"wsgi.input": Silent()}
    assert owner().post("/login", **environ).status == 408 and not caplog.records


def test_forms_are_short() -> None:
    browser = owner()
    for length in (str(LONGEST_FORM + 1), "-1", "x"):
        assert browser.post("/login", CONTENT_LENGTH=length).status == 413


def test_news_come_once_and_curves_only_when_they_moved() -> None:
    browser = owner()
    news = json.loads(browser.get("/jobs/job-1/news").body)
    assert news["position"] == 0 and news["curves"] == {} and news["actions"] == ["stop"]
    browser.jobs.events += [{"event": "progress", "step": step, "loss": 1.0 / step} for step in (1, 2)]
    moved = json.loads(browser.get("/jobs/job-1/news?after=0").body)
    assert moved["curves"]["loss"] == [[1, 2], [1.0, 0.5]] and moved["position"] == 2
    assert "curves" not in json.loads(browser.get("/jobs/job-1/news?after=2").body)
    # Whoever was away, or comes anew, has it all from one answer.
    for after in ("", "?after=1", "?after=x", "?after=99999999999999999999"):
        assert json.loads(browser.get(f"/jobs/job-1/news{after}").body)["curves"] == moved["curves"]


def texts_of(browser: Browser) -> dict[str, str]:
    news: dict[str, Any] = json.loads(browser.get("/jobs/job-1/news").body)
    return dict(news["texts"])


def test_a_job_that_is_resumed_and_waits_says_for_what_and_not_how_it_failed_before() -> None:
    browser = owner()
    failed = {"event": "failed", "time": 60.0, "code": "peer_lost", "message": "block 1 was lost"}
    browser.jobs.events = [STARTED, failed]
    ended = {"state": "failed", "started": 10.0, "ended": 60.0, "error": failed, "detail": "block 1 was lost"}
    browser.jobs.known["job-1"] = ended
    assert (texts_of(browser)["detail"], texts_of(browser)["took"]) == ("block 1 was lost", "50 s")
    nothing = dict.fromkeys(("started", "ended", "error"))
    browser.jobs.known["job-1"] = nothing | {"state": "queued", "detail": "waits for 4 CPUs: 0 of 4 are free"}
    assert texts_of(browser)["detail"] == "waits for 4 CPUs: 0 of 4 are free"
    assert texts_of(browser)["took"] == ABSENT


def test_what_was_measured_on_a_course_that_was_given_up_is_not_shown() -> None:
    browser = owner()
    browser.jobs.known["job-1"] = {"state": "running", "loss": 0.5, "test_accuracy": 0.98, "step": 600}
    evaluated = {"event": "evaluated", "time": 1.0, "step": 600, "test_loss": 0.2, "test_accuracy": 0.98}
    browser.jobs.events = [STARTED, {"event": "progress", "step": 600, "steps": 900, "loss": 0.5}, evaluated]
    assert texts_of(browser)["test_accuracy"] == "98.00%"
    browser.jobs.events += [
        {"event": "recovered", "time": 2.0, "step": 300, "seconds": 1.0, "policy": "restart"}
    ]
    browser.jobs.known["job-1"]["step"] = 300
    texts = texts_of(browser)
    assert (texts["steps"], texts["test_accuracy"], texts["test_loss"]) == (
        "300 of 900 steps (33%)",
        ABSENT,
        ABSENT,
    )


def test_a_failure_of_the_page_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    browser = owner()
    browser.jobs.known["job-1"] = None  # type: ignore[assignment]
    reply = browser.get("/jobs/job-1")
    assert reply.status == 500 and "Traceback" not in reply.text and "NoneType" not in reply.text
    assert "a page could not be made" in caplog.text


def test_large_answers_are_packed_for_browsers_that_take_it() -> None:
    packed = owner().get("/static/live.css", HTTP_ACCEPT_ENCODING="gzip, br")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == (STATIC / "live.css").read_bytes()
