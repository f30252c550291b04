"""gRPC settings of both ends of a connection, all derived from the run's liveness."""

from __future__ import annotations

Options = list[tuple[str, int]]


def client_options(liveness: float, *, proxy: bool = False) -> Options:
    """Return the channel options for a peer that counts as lost after ``liveness`` seconds of silence.

    Parameters
    ----------
    liveness
        In seconds.
    proxy
        Whether the environment may name a proxy (``grpc_proxy``, ``https_proxy``, ``http_proxy``, less ``no_proxy``).
        Blocks reach each other directly, and nothing on this machine is reached through one.
    """
    return [
        *_common_options(liveness),
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", _milliseconds(liveness / 6)),
        # Despite its name this is the time that one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", _milliseconds(liveness / 3)),
        # Channels to one address would share a connection, and errors would queue behind large activations.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(proxy)),
    ]


def server_options(liveness: float, shortest_ping: float | None = None) -> Options:
    """Return the server options for peers that count as lost after ``liveness`` seconds of silence.

    Parameters
    ----------
    liveness
        In seconds.
    shortest_ping
        Seconds between two pings of a client below which it is cut off; by default half of what `client_options` make
        of the same liveness. gRPC takes the first of two options of one name, so there must be one of each.
    """
    return [
        *_common_options(liveness),
        # A second server on the same port is an error, not a partner that shares its connections.
        ("grpc.so_reuseport", 0),
        # By default a server drops clients that ping more often than every five minutes.
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            _milliseconds(liveness / 6 if shortest_ping is None else shortest_ping),
        ),
    ]


def _common_options(liveness: float) -> Options:
    return [
        ("grpc.keepalive_time_ms", _milliseconds(liveness / 3)),
        ("grpc.keepalive_timeout_ms", _milliseconds(liveness / 3)),
        # Bandwidth probes are pings too, and while one is unanswered no keepalive ping is sent: by default it
        # may hide a silent peer for a minute.
        ("grpc.http2.ping_timeout_ms", _milliseconds(liveness / 3)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))
