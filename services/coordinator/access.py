"""Who may call: tokens, of which only hashes are kept, and what their roles allow."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

import grpc
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.private import own_file
from lowdimfa.services.coordinator.refusals import RefusedError

RoleName = Literal["read", "submit", "admin"]

_log = logging.getLogger(__name__)


class Role(IntEnum):
    """What a token allows; each role includes those before it."""

    read = 1
    submit = 2
    admin = 3


class TokenEntry(BaseModel):
    """One token in the file: whose it is, what it allows, and its SHA-256 digest; the token itself is nowhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")
    role: RoleName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Caller:
    """Who makes a call; ``name`` is empty where the service has no tokens, and everybody may do everything."""

    name: str
    role: Role


_ENTRIES = TypeAdapter(list[TokenEntry])


def read_tokens(path: Path) -> list[TokenEntry]:
    """Return the entries of a token file.

    Raises
    ------
    InputError
        It can't be read, isn't a list of entries, or has a name twice.
    """
    expected = "a JSON list of entries with name, role and sha256, as 'lowdimfa tokens add' writes them"
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"token file {path}", f"a file that can't be read ({error.strerror})", expected
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]  # what is there may be a secret
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(f"token file {path}: {where}", first["msg"].lower(), expected) from None
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"token file {path}", f"{twice[0]!r} more than once", "each name once")
    return entries


def write_tokens(path: Path, entries: list[TokenEntry]) -> None:
    """Write a token file in place of the old one, readable by its owner alone.

    Raises
    ------
    InputError
        It can't be written there.
    """
    text = json.dumps([entry.model_dump() for entry in entries], indent=2)
    try:
        scratch = own_file(path.with_name(f".{path.name}.{os.getpid()}"))
        scratch.write_text(f"{text}\n", "utf-8")
        scratch.replace(path)
    except OSError as error:
        found = f"no place to write ({error.strerror})"
        raise InputError(f"token file {path}", found, "a writable place in a folder that is there") from error


def new_token(name: str, role: RoleName) -> tuple[str, TokenEntry]:
    """Return a fresh token and the entry by which it will be known."""
    token = f"lowdimfa_{secrets.token_urlsafe(32)}"
    return token, TokenEntry(name=name, role=role, sha256=digest(token))


def digest(token: str) -> str:
    """Return what a token file has of a token. Tokens are random and long, so that a plain hash hides them."""
    return hashlib.sha256(token.encode()).hexdigest()


class Gate:
    """Finds the caller of a call.

    The file is read again when it changes, so that a token can be taken back without a restart. Contents that are no
    longer valid change nothing; while there is no file, or one that can't be read, nobody gets in.

    Parameters
    ----------
    path
        Of the token file; None lets everybody in as administrator.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: list[TokenEntry] = []
        self._stamp: tuple[int, int, int] | None = None
        self._away = False
        if path is not None:
            self._entries, self._stamp = read_tokens(path), _stamp(path)

    def caller(self, authorization: str) -> Caller:
        """Return who sent an ``authorization`` value.

        Raises
        ------
        RefusedError
            There is no token, it is not a known one, or no token is known.
        """
        if self._path is None:
            return Caller("", Role.admin)
        self._refresh(self._path)
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED,
                "no token; send 'authorization: Bearer <token>' (the command line takes LOWDIMFA_TOKEN)",
                "access",
            )
        found, hashed = None, digest(token.strip())
        for entry in self._entries:  # all of them, so that the time says nothing
            if hmac.compare_digest(entry.sha256, hashed):
                found = entry
        if self._away:
            message = "the service can't read its token file: nobody gets in until it is there again"
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, message, "access")
        if found is None:
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, "the token is not known here", "access")
        return Caller(found.name, Role[found.role])

    def _refresh(self, path: Path) -> None:
        stamp = _stamp(path)
        if stamp is not None and stamp == self._stamp:
            return
        away = False
        try:
            self._entries = read_tokens(path)
        except InputError as error:
            away = isinstance(error.__cause__, OSError)
            if not away:
                _log.error("the tokens stay as they were: %s", error.message)
            elif not self._away:
                self._entries = []
                _log.error("nobody gets in any more: %s", error.message)
        if self._away and not away:
            _log.warning("token file %s is there again", path)
        self._stamp, self._away = None if away else stamp, away  # one that is away is looked for at each call


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ctime_ns, status.st_size, status.st_ino  # of contents and rights


def require_role(caller: Caller, needed: Role, method: str) -> None:
    """Refuse a call that the caller's role doesn't allow.

    Raises
    ------
    RefusedError
    """
    if caller.role < needed:
        raise RefusedError(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{method} needs the role '{needed.name}'; token '{caller.name}' has '{caller.role.name}'",
            "access",
        )


def may_change(caller: Caller, owner: str) -> bool:
    """Say whether a caller may stop and resume the jobs of an owner."""
    return caller.role >= (Role.submit if caller.name == owner else Role.admin)
