"""What an operator sets of a coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowdimfa.services.rpc.security import is_loopback
from lowdimfa.services.run.storage import Place


@dataclass(frozen=True)
class ServeSettings:
    """The options of ``lowdimfa serve``.

    Attributes
    ----------
    host, port
        Where the API listens; port 0 lets the system choose.
    http_host, http_port
        Where ``/metrics``, ``/targets`` and ``/healthz`` are served; without authentication.
    page_port
        Where the live page is served, on ``host``, with the API's certificates and tokens; None for nowhere.
    storage
        Where runs are kept: a folder that the coordinator and all nodes of the cluster share, or an address.
    state
        Folder of the coordinator alone: the job store.
    ray_address
        Of the cluster; None for one on this machine that the coordinator starts.
    tls_cert, tls_key
        PEM files of the server's certificate and its key.
    client_ca
        PEM file of the authority that clients' certificates must come from; None asks for none.
    tokens
        File of tokens; None lets everybody do everything.
    insecure
        Whether the API may be in the clear, or open to everybody, beyond loopback.
    liveness
        Seconds from which every deadline derives.
    max_queued
        Jobs that may wait.
    max_streams_per_client
        Open streams of one client.
    job_metrics
        Where the processes of jobs serve their metrics: see ``run.metrics``.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    http_host: str = "127.0.0.1"
    http_port: int = 9464
    page_port: int | None = None
    storage: Place = "runs"
    state: Path = Path("runs/.coordinator")
    ray_address: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    liveness: float = 60.0
    max_queued: int = 10_000
    max_streams_per_client: int = 256
    job_metrics: Literal["loopback", "node"] = "loopback"

    @property
    def on_loopback(self) -> bool:
        """Whether nobody beyond this machine can reach the API."""
        return is_loopback(self.host)

    @property
    def pages_are_open(self) -> bool:
        """Whether ``/metrics``, ``/targets`` and ``/healthz`` can be read beyond this machine, by everybody."""
        return not is_loopback(self.http_host)

    @property
    def page_is_safe(self) -> bool:
        """Whether nobody's token would travel in the clear to the live page."""
        return self.on_loopback or self.tls_cert is not None or self.tokens is None
