"""``lowdimfa serve``: run the job service."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowdimfa.errors import InputError
from lowdimfa.services.cli.options import MOST_LIVENESS, Format, FormatOption, StorageOption, expanded
from lowdimfa.services.cli.output import outlive
from lowdimfa.services.spec.addresses import is_address

if TYPE_CHECKING:
    from lowdimfa.services.coordinator.settings import ServeSettings


class JobMetrics(StrEnum):
    """Where the processes of jobs serve their metrics."""

    loopback = "loopback"
    node = "node"


Host = Annotated[str, typer.Option(help="Address to listen on; beyond loopback with TLS and tokens.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 lets the system choose.")]
HttpHost = Annotated[
    str | None, typer.Option(help="Address of /metrics, /targets and /healthz; by default --host.")
]
HttpPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of these pages.")]
PagePort = Annotated[
    int,
    typer.Option(
        min=0, max=65535, help="Port of the live page, on --host, with the API's certificates and tokens."
    ),
]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Whether there is a live page.")]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=expanded,
        help="Folder of the service alone, to be kept; by default .coordinator in the storage, if that is a folder.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Ray cluster; without it one on this machine is started, and ended when idle."),
]
TlsCert = Annotated[
    Path | None, typer.Option(metavar="FILE", parser=expanded, help="The server's certificate.")
]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", parser=expanded, help="Its private key.")]
ClientCa = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=expanded, help="Ask clients for a certificate of this authority."),
]
Tokens = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=expanded, help="Who may call; see 'lowdimfa tokens'."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without TLS or tokens.")]
Liveness = Annotated[
    float,
    typer.Option(min=0.5, max=MOST_LIVENESS, help="Seconds of silence from which every deadline derives."),
]
MaxQueued = Annotated[int, typer.Option(min=1, help="Jobs that may wait.")]
MaxStreamsPerClient = Annotated[
    int, typer.Option(min=1, help="Watches and logs that a client may have open.")
]
MetricsOption = Annotated[
    JobMetrics | None,
    typer.Option(
        help="Where jobs serve their metrics; by default loopback if --host is, else the node's address."
    ),
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 50051,
    http_host: HttpHost = None,
    http_port: HttpPort = 9464,
    page_port: PagePort = 9465,
    page: Page = True,
    storage: StorageOption = "runs",
    state: State = None,
    ray_address: RayAddress = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    client_ca: ClientCa = None,
    tokens: Tokens = None,
    insecure: Insecure = False,
    liveness: Liveness = 60.0,
    max_queued: MaxQueued = 10_000,
    max_streams_per_client: MaxStreamsPerClient = 256,
    job_metrics: MetricsOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Run the job service until Ctrl-C or SIGTERM. Jobs outlive it; the next start picks them up."""
    from lowdimfa.services.coordinator.settings import ServeSettings

    # One line for each call, with method, client and status; never a token.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    outlive("standard error has what the service does")
    settings = ServeSettings(
        host=host,
        port=port,
        http_host=http_host or host,
        http_port=http_port,
        page_port=page_port if page else None,
        storage=storage,
        state=state or _beside(storage),
        ray_address=ray_address,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        tokens=tokens,
        insecure=insecure,
        liveness=liveness,
        max_queued=max_queued,
        max_streams_per_client=max_streams_per_client,
    )
    chosen = job_metrics or (JobMetrics.loopback if settings.on_loopback else JobMetrics.node)
    _serve(replace(settings, job_metrics=chosen.value), form)


def _beside(storage: str) -> Path:
    if is_address(storage):
        raise InputError(
            "--state",
            f"none, with the address {storage} as --storage",
            "a folder of the service's own, which outlives it: the job store is there",
        )
    return Path(storage) / ".coordinator"


def _serve(settings: ServeSettings, form: Format) -> None:
    """Run the service and say what it comes to."""
    from lowdimfa.services.coordinator.process import serve as run

    def say(text: str, **fields: object) -> None:
        print(json.dumps(fields) if form is Format.json else text)

    def serving(address: str, http: str, page: str, ray: str) -> None:
        shown = f"; live page {page}" if page else ""
        say(
            f"serving on {address}{shown}; metrics, targets and health on http://{http}; Ray cluster {ray}",
            event="serving",
            address=address,
            http=http,
            page=page,
            ray_address=ray,
        )

    if settings.page_port is not None and not settings.page_is_safe:
        logging.warning("no live page: beyond loopback, tokens need TLS (--tls-cert and --tls-key)")
    if settings.pages_are_open:
        logging.warning(
            "metrics, targets and health on %s, port %d, are for everybody: without TLS or tokens (--http-host)",
            settings.http_host,
            settings.http_port,
        )

    say("starting", event="starting")
    active = run(settings, serving)
    goes_on = (
        "" if not active else f"; {', '.join(active)} run on: 'lowdimfa serve' with this --storage finds them"
    )
    say(f"ended{goes_on}", event="ended", active=active)
