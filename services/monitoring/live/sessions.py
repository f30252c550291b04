"""Who a request is from, and whether it was made on the page: cookies, form tokens, hosts and origins."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken

from lowdimfa.services.monitoring.live.source import Refusal, Visitor

HOURS = 12
"""A session ends after so long; the token in it is asked for again."""

LONGEST_TOKEN = 512

Environ = Mapping[str, Any]


class Sessions:
    """Knows visitors by an encrypted cookie that holds their token, so that a session outlives the server's process.

    The browser's scripts can't read it, other sites' requests don't carry it, and whoever gets hold of it, such as
    another server on the same host, does not get the token. The token itself is checked by the source at every request.

    Parameters
    ----------
    key
        A Fernet key.
    secure
        Whether the page is served with TLS.
    port
        Of the page. Cookies don't tell ports apart, so that it is part of the cookie's name.
    """

    def __init__(self, key: bytes, *, secure: bool, port: int) -> None:
        self._fernet = Fernet(key)
        self._key = hashlib.sha256(b"form" + key).digest()
        self._secure = secure
        self._name = f"{'__Host-' if secure else ''}lowdimfa-{port}"

    def visitor(self, environ: Environ) -> Visitor:
        """Return who sent a request: by its ``Authorization`` header, else by its cookie."""
        authorization = str(environ.get("HTTP_AUTHORIZATION", ""))
        if not authorization and (token := self._token(environ)):
            authorization = f"Bearer {token}"
        return Visitor(authorization, str(environ.get("REMOTE_ADDR", "")))

    def begin(self, token: str) -> tuple[str, str]:
        """Return the header that gives a visitor with a good token a session."""
        return self._set_cookie(self._fernet.encrypt(token.encode()).decode(), 3600 * HOURS)

    def end(self) -> tuple[str, str]:
        """Return the header that ends a session."""
        return self._set_cookie("", 0)

    def form_token(self, environ: Environ) -> str:
        """Return what a form must send along: known to those alone who can read the page."""
        return hmac.digest(self._key, self._cookie(environ).encode(), "sha256").hex()

    def require_own(self, environ: Environ, form_token: str) -> None:
        """Refuse a request to change something that another site may have caused.

        Raises
        ------
        Refusal
        """
        site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
        # By its host alone: a proxy before the page may have added the encryption.
        foreign = origin is not None and _host_of(str(origin)) != environ.get("HTTP_HOST", "")
        if site not in (None, "same-origin", "none") or foreign:
            raise Refusal(HTTPStatus.FORBIDDEN, "the request comes from another site")
        if not environ.get("HTTP_AUTHORIZATION") and not hmac.compare_digest(
            form_token.encode(), self.form_token(environ).encode()
        ):
            raise Refusal(HTTPStatus.FORBIDDEN, "the form is out of date; open the page again")

    def _token(self, environ: Environ) -> str:
        try:
            return self._fernet.decrypt(self._cookie(environ).encode(), ttl=3600 * HOURS).decode()
        except (InvalidToken, UnicodeError):
            return ""

    def _cookie(self, environ: Environ) -> str:
        # Each for itself: what other servers of this host set may be such that a strict parser refuses all of them.
        pairs = (part.strip().partition("=") for part in str(environ.get("HTTP_COOKIE", "")).split(";"))
        return next((value for name, _, value in pairs if name == self._name), "")

    def _set_cookie(self, value: str, seconds: int) -> tuple[str, str]:
        secure = "; Secure" if self._secure else ""
        return (
            "Set-Cookie",
            f"{self._name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}",
        )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def require_known_host(environ: Environ) -> None:
    """Refuse a name that another site may have pointed here to read the page as its own.

    Where everybody may come in, the address in the bar has to be a number, ``localhost`` or a name without a dot.

    Raises
    ------
    Refusal
    """
    host = str(environ.get("HTTP_HOST", ""))
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if not name or "." in name:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "without tokens, the page answers under localhost or an address in numbers alone",
            ) from None
