"""Whether a run is at a place, and whether one can be there: a folder, or an address in an object store."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from lowdimfa.errors import InputError
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.mirror import NAMED, work_dir
from lowdimfa.services.run.objects import KEY, PATIENCE, Objects
from lowdimfa.services.run.storage import Place
from lowdimfa.services.spec.addresses import is_address

START_PATIENCE = 15.0
"""Most seconds for which a store that does not answer is asked again before a run begins, and when it is stopped."""


ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3")
"""Variables of the environment that name another server than that of S3."""


def require_usable(address: str, patience: float, key: str = KEY) -> bool:
    """Check what a run does with objects at an address, and return whether one is there.

    Raises
    ------
    InputError
        Something of it is not possible; with what is needed.
    """
    if address.startswith("s3"):
        _require_hosts(key)
    objects, probe = Objects(address, min(patience, START_PATIENCE)), f".writable-{secrets.token_hex(4)}"
    doing = "written"
    try:
        with objects.writing(probe) as file:
            file.write(b"\n")
        doing = "read"
        objects.read(probe)
        doing = "listed"
        objects.files(probe)
        doing = "deleted"
        objects.delete(probe)
        doing = "read"
        return _has_name(objects)
    except OSError as error:
        raise InputError(
            key,
            f"{address}, where objects can't be {doing} ({error.strerror})",
            "a bucket that is there, and credentials in the environment that may read, write, list and delete in it",
            "For S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for another server.",
        ) from error


def _require_hosts(key: str) -> None:
    """Refuse the address of a server that names none: the client in Rust would panic, and print where."""
    for name in ENDPOINTS:
        given = os.environ.get(name, "")
        if given and not urlsplit(given).hostname:
            raise InputError(
                f"{name} in the environment, for {key}", repr(given), "an address such as http://host:9000"
            )


def named(place: Place, patience: float = PATIENCE) -> bool:
    """Return whether a run is at a place.

    Raises
    ------
    StorageError
        The store doesn't say.
    """
    if not is_address(place):
        return (Path(place) / NAMED).exists()
    try:
        return _has_name(Objects(str(place), min(patience, START_PATIENCE)))
    except OSError as error:
        raise refusal("whether a run is there can't be seen", str(place), error) from error


def _has_name(objects: Objects) -> bool:
    with suppress(FileNotFoundError):
        objects.read(NAMED)
        return True
    return False


def unname(place: Place) -> None:
    """Let a directory count as that of no run; what is in it stays.

    Raises
    ------
    StorageError
        The store refuses.
    """
    (work_dir(place) / NAMED).unlink(missing_ok=True)
    if is_address(place):
        try:
            with suppress(FileNotFoundError):
                Objects(str(place)).delete(NAMED)
        except OSError as error:
            raise refusal("the run can't begin anew", str(place), error) from error
