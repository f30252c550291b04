import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lowdimfa.errors import ResourceError
from lowdimfa.services.monitoring.exporter import Exporter, start_exporter
from lowdimfa.services.monitoring.metrics import BlockMetrics


@pytest.fixture
def metrics() -> BlockMetrics:
    return BlockMetrics("run-1", "0")


@pytest.fixture
def serving(metrics: BlockMetrics) -> Iterator[tuple[Exporter, int]]:
    exporter, port = start_exporter(metrics.registry, "127.0.0.1")
    yield exporter, port
    exporter.close()


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_scrape_sees_the_latest_values(metrics: BlockMetrics, serving: tuple[Exporter, int]) -> None:
    _, port = serving
    for expected in (128, 256):
        metrics.samples(128)
        assert scrape(port)["lowdimfa_block_trained_samples_total"] == expected


def test_a_port_that_is_taken_is_a_typed_error(metrics: BlockMetrics, serving: tuple[Exporter, int]) -> None:
    _, port = serving
    with pytest.raises(ResourceError, match=str(port)):
        start_exporter(metrics.registry, "127.0.0.1", port)


def test_closing_frees_the_port_and_ends_the_thread(metrics: BlockMetrics) -> None:
    exporter, port = start_exporter(metrics.registry, "127.0.0.1")
    scrape(port)
    exporter.close()
    assert not exporter.thread.is_alive()
    again, same = start_exporter(metrics.registry, "127.0.0.1", port)
    again.close()
    assert same == port
