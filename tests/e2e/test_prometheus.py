"""The real Prometheus: it takes our configuration, rules and pages, and the dashboards' queries find data in it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus import Prometheus, dashboard_expressions
from service import Service

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (Debian's package prometheus has both)",
)


def promtool(*arguments: object, stdin: str = "") -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("name", ["prometheus.yml", "local.yml"])
def test_the_configurations_and_their_rules_are_valid(name: str) -> None:
    promtool("check", "config", DEPLOY / name)


def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", *sorted((DEPLOY / "tests").glob("*.yml")))


@contextmanager
def server(served: Service, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus on the local configuration, faster, on the service's port and its folder of runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    text = (DEPLOY / "local.yml").read_text()
    text = text.replace("127.0.0.1:9464", served.http).replace("rules/*.yml", f"{DEPLOY}/rules/*.yml")
    text = text.replace("../../runs", str(served.storage))
    text = re.sub(
        r"(scrape_interval|scrape_timeout|evaluation_interval|refresh_interval): \d+s", r"\1: 1s", text
    )
    config = folder / "prometheus.yml"
    config.write_text(text)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(30)


def test_every_query_of_the_dashboards_finds_data_of_a_running_job(served: Service, tmp_path: Path) -> None:
    with server(served, tmp_path) as prometheus:
        job = served.submit(
            model__blocks=2,
            train__epochs=3000,
            run__alignment_every=200,
            run__checkpoint_every=200,
            run__evaluate_every_epochs=5,
        )
        try:
            look_at(served, prometheus, job)
        finally:
            served.stop(job)


def look_at(served: Service, prometheus: Prometheus, job: str) -> None:
    """Check what Prometheus has of a job under way, and every page that it took it from."""
    expressions = dashboard_expressions(ROOT / "deploy" / "grafana" / "dashboards", job=job)
    with served.watching(job) as watch:
        empty = list(expressions)
        while empty:
            watch.until("evaluated")  # as long as the job goes on, whose evaluations set the pace
            empty = [place for place in empty if not prometheus_has(prometheus, expressions[place])]
    blocks = prometheus.series(f'lowdimfa_block_applied_steps{{job="{job}"}}')
    assert sorted(labels["block"] for labels in blocks) == ["0", "1"]
    assert not prometheus.series('ALERTS{alertstate="firing"}')
    targets = [labels["instance"] for labels in prometheus.series(f'up{{job="{job}"}}')]
    assert len(targets) == 3
    pages = sorted(f"http://{address}/metrics" for address in (served.http, *targets))
    assert sorted(prometheus.targets()) == pages, (
        "each once, though the service and the files both list a job"
    )
    for address in (served.http, *targets):
        promtool("check", "metrics", stdin=page(f"{address}/metrics"))


def prometheus_has(prometheus: Prometheus, expression: str) -> bool:
    try:
        return bool(prometheus.series(expression))
    except OSError:  # it is still starting
        return False
