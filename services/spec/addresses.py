"""Addresses of object stores, as they may stand in a specification."""

from __future__ import annotations

import os
import re

from lowdimfa.errors import InputError

_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*:.*@|(?:s3a?|gc?s)://[^/]*@|[^?]*://[^?]*\?")
"""A name and a password before an ``@``, or a query, which may have a signature in it. An account of Azure is neither.

A password may have slashes, as secret keys of S3 often do, so the ``@`` may stand anywhere after a name and a colon.
"""


PLAIN = (
    "an address with credentials or a query in it",
    "scheme://bucket/prefix alone",
    "Credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
)
"""What is found, expected and advised of an address with credentials."""


def is_address(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address, and not the path of a folder."""
    return _ADDRESS.match(os.fspath(place)) is not None


def has_credentials(text: str) -> bool:
    """Whether an address has in it what nobody but its owner may know."""
    return _CREDENTIALS.match(text) is not None


def require_plain(text: str, key: str) -> None:
    """Refuse credentials in an address, without repeating them.

    Raises
    ------
    InputError
        There are some.
    """
    if has_credentials(text):
        raise InputError(key, *PLAIN)
