"""Who may talk to a run's blocks: one secret token per run, and mutual TLS beyond the loopback interface."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc.experimental import ChannelOptions

from lowdimfa.errors import InputError
from lowdimfa.services.rpc.certificates import Authority
from lowdimfa.services.rpc.options import client_options

#: The name in the certificate of every block. Blocks are found by address, so they share one name and one
#: certificate.
BLOCK_NAME = "lowdimfa-block"


@dataclass(frozen=True)
class Security:
    """The secrets of one run, the same in all of its blocks.

    Attributes
    ----------
    token
        Sent with every call.
    certificate, key, authority
        PEM of the certificate chain, its private key, and the certificate of the authority that both sides of
        a connection must have been signed by. All ``None`` without TLS.
    """

    token: str = field(repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    authority: bytes | None = field(default=None, repr=False)

    @classmethod
    def loopback(cls) -> Security:
        """Return a fresh token without TLS, for blocks on one machine."""
        return cls(secrets.token_urlsafe(32))

    @classmethod
    def mutual_tls(cls, days: int = 3650) -> Security:
        """Return a fresh token and a fresh certificate that is valid for ``days``.

        The authority's private key is forgotten at once, so nobody can add a block to the run later. And so the
        certificate can't be renewed: it has to outlast any run, which needs it whenever blocks connect again.
        """
        authority = Authority("lowdimfa-run", days)
        certificate, key = authority.issue(BLOCK_NAME, [BLOCK_NAME], "peer")
        return cls(secrets.token_urlsafe(32), certificate, key, authority.certificate)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata that every call must carry."""
        return (("authorization", f"Bearer {self.token}"),)

    def require_allowed(self, address: str) -> None:
        """Refuse to use ``address`` (``host`` or ``host:port``) in the clear unless it is this machine.

        Raises
        ------
        InputError
            The address is not a loopback address and there is no TLS.
        """
        if self.certificate is None and not is_loopback(address):
            raise InputError(
                f"address {address}",
                "no TLS",
                "TLS on every address but loopback",
                "Create the run's secrets with Security.mutual_tls().",
            )

    def server_credentials(self) -> Any:
        """Return `grpc.ServerCredentials` that ask the client for a certificate; ``None`` without TLS."""
        if self.certificate is None:
            return None
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.authority, require_client_auth=True
        )

    def channel(self, address: str, liveness: float, *, single_threaded: bool = False) -> Any:
        """Return a `grpc.Channel` to ``address``.

        Parameters
        ----------
        address
            ``host:port``.
        liveness
            Seconds of silence after which the other end counts as lost.
        single_threaded
            Who reads a stream waits on the connection itself: no thread of gRPC's hands each message over. Until the
            other end answers, such a call can be ended only with its channel.

        Raises
        ------
        InputError
            The address is not a loopback address and there is no TLS.
        """
        self.require_allowed(address)
        options = [
            *client_options(liveness),
            (ChannelOptions.SingleThreadedUnaryStream, int(single_threaded)),
        ]
        if self.certificate is None:
            return grpc.insecure_channel(address, options)
        credentials = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        return grpc.secure_channel(
            address, credentials, [*options, ("grpc.ssl_target_name_override", BLOCK_NAME)]
        )


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers UNAUTHENTICATED to calls without the run's token."""

    def __init__(self, security: Security) -> None:
        self._expected = security.metadata[0][1].encode()
        # One handler refuses calls of all four kinds: it answers without reading a request.
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Let a call through, or refuse it."""
        found = dict(details.invocation_metadata).get("authorization", "")
        if hmac.compare_digest(str(found).encode(), self._expected):
            return continuation(details)
        return self._refusal


def _refuse(_requests: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing, or is not this run's token")


def is_loopback(address: str) -> bool:
    """Return whether an address (``host`` or ``host:port``) is that of this machine itself."""
    host = address.rpartition(":")[0] if address.count(":") == 1 or "]" in address else address
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may resolve to anything
        return False
