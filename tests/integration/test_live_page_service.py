"""The service's live page over HTTP: the API's tokens, roles, certificates and limits, and sessions that outlive it."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from coordinator_thread import SPECIFICATION, MemoryCluster, Running, coordinator
from prometheus_client.parser import text_string_to_metric_families
from rpc_helpers import eventually

from lowdimfa.services.coordinator.access import new_token, write_tokens
from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.coordinator.jobs import JobState, Submission
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.rpc.certificates import Authority


class Visitor:
    """A browser's connection to the page."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._address, self._tls = running.page.partition("//")[2], running.page.startswith("https")
        self._trust = ssl.create_default_context(cafile=folder / "ca.crt") if self._tls else None
        self.cookie = ""

    def ask(self, method: str, path: str, **form: str) -> tuple[int, str, http.client.HTTPMessage]:
        made: Any = (
            http.client.HTTPSConnection(self._address, timeout=20, context=self._trust)
            if self._tls
            else http.client.HTTPConnection(self._address, timeout=20)
        )
        try:
            headers = {"Cookie": self.cookie, "Content-Type": "application/x-www-form-urlencoded"}
            made.request(method, path, urlencode(form) if form else None, headers)
            reply = made.getresponse()
            self.cookie = (reply.headers["Set-Cookie"] or self.cookie).partition(";")[0]
            return reply.status, reply.read().decode(), reply.headers
        finally:
            made.close()

    def post(self, path: str, **form: str) -> int:
        (token, *_) = re.findall(r'name="form_token" value="(\w+)"', self.ask("GET", "/login")[1])
        return self.ask("POST", path, form_token=token, **form)[0]

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(json.loads(self.ask("GET", f"/jobs/{job_id}/news")[1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority("test", 1)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    certificate, key = authority.issue("coordinator", ["127.0.0.1"], "server")
    (tmp_path / "server.crt").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    return tmp_path


@pytest.fixture
def tokens(folder: Path) -> dict[str, str]:
    made = {
        name: new_token(name, role)
        for name, role in (("ada", "submit"), ("eve", "submit"), ("guest", "read"))
    }
    write_tokens(folder / "tokens.json", [entry for _, entry in made.values()])
    return {name: token for name, (token, _) in made.items()}


def guarded(folder: Path, port: int = 0) -> Any:
    def change(settings: ServeSettings) -> ServeSettings:
        files = {name: folder / f"server.{end}" for name, end in (("tls_cert", "crt"), ("tls_key", "key"))}
        return replace(settings, page_port=port, tokens=folder / "tokens.json", **files)

    return coordinator(folder, MemoryCluster(cpus=2), change)


@pytest.fixture
def opened(folder: Path) -> Iterator[Running]:
    with coordinator(
        folder, MemoryCluster(cpus=2), lambda settings: replace(settings, page_port=0)
    ) as running:
        yield running


def test_the_page_has_the_tokens_roles_and_certificates_of_the_api(
    folder: Path, tokens: dict[str, str]
) -> None:
    with guarded(folder) as running:
        client = CoordinatorClient(
            Connection(running.address, token=tokens["ada"], authority=folder / "ca.crt")
        )
        job = client.submit("mine", SPECIFICATION, {})[0]["id"]
        eventually(lambda: running.store.get(job).state is JobState.starting)
        ada, eve, guest = (Visitor(running, folder) for _ in range(3))
        assert ada.ask("GET", f"/jobs/{job}")[2]["Location"] == "/login"
        assert ada.post("/login", token="lowdimfa_wrong") == 401 and not ada.cookie
        for name, visitor in (("ada", ada), ("eve", eve), ("guest", guest)):
            assert visitor.post("/login", token=tokens[name]) == 303
            assert visitor.cookie.startswith("__Host-") and tokens[name] not in visitor.cookie
            assert SPECIFICATION.strip().replace("'", "&#39;") in visitor.ask("GET", f"/jobs/{job}")[1]
        assert [v.job(job)["actions"] for v in (ada, eve, guest)] == [["stop"], [], []]
        assert [v.post(f"/jobs/{job}/stop", mode="graceful") for v in (eve, guest)] == [403, 403]
        assert running.store.get(job).stop_requested == ""
        assert ada.post(f"/jobs/{job}/stop", mode="graceful") == 303
        eventually(lambda: running.store.get(job).state is JobState.stopped)
        assert (ada.job(job)["actions"], ada.job(job)["texts"]["state"]) == (["resume"], "stopped")
        assert ada.post(f"/jobs/{job}/stop", mode="now") == 409 and ada.post("/jobs/none/resume") == 404
        assert [v.post(f"/jobs/{job}/resume") for v in (guest, ada)] == [403, 303]
        # In the clear, nobody gets a word.
        plain = http.client.HTTPConnection(running.page.partition("//")[2], timeout=20)
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.request("GET", "/login")
            plain.getresponse()
        port = int(running.page.rpartition(":")[2])
    with guarded(folder, port) as again:  # a session goes on where the service does
        assert again.page.endswith(f":{port}") and ada.job(job)["texts"]["name"] == "mine"
        write_tokens(folder / "tokens.json", [])
        assert ada.ask("GET", f"/jobs/{job}/news")[0] == 401


def test_what_a_run_logs_reaches_the_page_as_the_protocol_has_it(opened: Running, folder: Path) -> None:
    job, _ = opened.store.create(Submission("job", "", SPECIFICATION), 99, 0)
    opened.store.transition(job.id, JobState.starting, "")
    odd = [
        {"event": "recovering", "time": "x", "step": "many"},
        {"event": ["x"]},
        {"event": "progress", "step": "1"},
    ]
    points = [{"event": "progress", "time": 0.0, "step": step, "loss": 1 / step} for step in range(1, 5000)]
    opened.store.append(job.id, [*odd, *points], 1)
    logs = Path(job.run_dir) / "logs"
    logs.mkdir(parents=True)
    (logs / "trainer.log").write_text("<b>one</b>\ntwo\n")
    visitor = Visitor(opened, folder)
    news = visitor.job(job.id)
    steps, losses = news["curves"]["loss"]
    assert len(steps) <= 1000 and (steps[-1], losses[0]) == (4999, 1.0) and not news["more"]
    assert news["position"] == opened.store.get(job.id).last_sequence and news["recoveries"] == []
    assert sum("can't be shown" in words for _, _, words in news["notes"]) == 2
    assert json.loads(visitor.ask("GET", f"/jobs/{job.id}/logs")[1]) == {"trainer": "<b>one</b>\ntwo"}
    assert [line["id"] for line in json.loads(visitor.ask("GET", "/jobs.json")[1])] == [job.id]
    assert visitor.ask("GET", "/?page=xx")[0] == 400


def test_what_an_open_page_reads_is_no_call_of_a_client(opened: Running, folder: Path) -> None:
    def counted() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{opened.http}/metrics", timeout=20) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {
                f"{sample.name} {sample.labels['method']}": sample.value
                for family in families
                for sample in family.samples
                if sample.name.endswith(("_calls_total", "_call_duration_seconds_count"))
            }

    job, _ = opened.store.create(Submission("job", "", SPECIFICATION), 99, 0)
    visitor = Visitor(opened, folder)
    for path in ("/", f"/jobs/{job.id}", f"/jobs/{job.id}/news", f"/jobs/{job.id}/logs"):
        assert visitor.ask("GET", path)[0] == 200
    assert counted() == {}
    CoordinatorClient(Connection(opened.address)).get(job.id)
    names = ("answered_calls_total", "call_duration_seconds_count")
    assert counted() == {f"lowdimfa_coordinator_{name} GetJob": 1 for name in names}


@pytest.mark.parametrize(
    ("change", "served"),
    [
        ({"page_port": None}, False),
        ({"insecure": True, "host": "0.0.0.0"}, True),
        ({"insecure": True, "host": "0.0.0.0", "tokens": "tokens.json"}, False),
        ({"tokens": "tokens.json"}, True),
    ],
)
def test_beyond_loopback_no_token_travels_in_the_clear(
    folder: Path, tokens: dict[str, str], change: dict[str, Any], served: bool
) -> None:
    if "tokens" in change:
        change = change | {"tokens": folder / change["tokens"]}
    with coordinator(
        folder, None, lambda settings: replace(settings, **{"page_port": 0} | change)
    ) as running:
        assert bool(running.page) is served
