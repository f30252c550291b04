"""Checking what a client submits. Nothing of it is run or imported here: that is for the cluster."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import grpc

from lowdimfa.services.coordinator.jobs import Submission
from lowdimfa.services.coordinator.refusals import RefusedError, Violation
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from lowdimfa.services.run.user_code import MAX_BYTES
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.load import parse_text, violations

MOST_SPECIFICATION_BYTES = 256 << 10
MOST_FILES = 1000
LONGEST_KEY = 128
LONGEST_PATH = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PATH = re.compile(r"[A-Za-z0-9_\-./]+\.py")


def checked(request: pb.SubmitJobRequest, owner: str) -> tuple[Submission, Specification]:
    """Return what a request submits.

    Raises
    ------
    RefusedError
        Something is too large, or not valid; every violation is named.
    """
    _require_size("specification", len(request.specification.encode()), MOST_SPECIFICATION_BYTES)
    _require_size("files", sum(len(file.content.encode()) for file in request.files), MAX_BYTES)
    wrong = [*_name(request), *_files(request)]
    wrong += [
        Violation(f"specification.{key}" if key else "specification", words)
        for key, words in violations(request.specification)
    ]
    if wrong:
        raise RefusedError.invalid(*wrong)
    specification = parse_text(request.specification, "specification")
    form = specification.feedback.form
    if form != "broadcast":
        raise RefusedError.invalid(
            Violation(
                "specification.feedback.form",
                f"found {form!r}; expected 'broadcast'. The baselines run in one process: "
                "'lowdimfa train --engine local' has them.",
            )
        )
    submission = Submission(
        request.name,
        owner,
        request.specification,
        {file.path: file.content for file in request.files},
        request.client_key,
    )
    return submission, specification


def _require_size(field: str, size: int, most: int) -> None:
    if size > most:
        raise RefusedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{field}: found {size:,} bytes; expected at most {most:,}. Data belongs on the cluster's storage.",
            "bad_input",
            [Violation(field, f"more than {most:,} bytes")],
        )


def _name(request: pb.SubmitJobRequest) -> list[Violation]:
    wrong = []
    if not _NAME.fullmatch(request.name):
        expected = "letters, digits, '-' and '_', at most 63, a letter or digit first"
        wrong.append(Violation("name", f"found {request.name[:80]!r}; expected {expected}"))
    if len(request.client_key) > LONGEST_KEY:
        wrong.append(
            Violation(
                "client_key",
                f"found {len(request.client_key)} characters; expected at most {LONGEST_KEY}",
            )
        )
    return wrong


def _files(request: pb.SubmitJobRequest) -> list[Violation]:
    if len(request.files) > MOST_FILES:
        return [Violation("files", f"found {len(request.files)}; expected at most {MOST_FILES}")]
    wrong, seen = [], set()
    for index, file in enumerate(request.files):
        field = f"files[{index}].path"
        path = PurePosixPath(file.path)
        inside = _PATH.fullmatch(file.path) and not path.is_absolute() and ".." not in path.parts
        if not inside or len(file.path) > LONGEST_PATH or str(path) != file.path:
            expected = "a relative path of a Python file, without '..'"
            wrong.append(Violation(field, f"found {file.path[:80]!r}; expected {expected}"))
        elif file.path in seen:
            wrong.append(Violation(field, f"found {file.path!r} a second time; expected each path once"))
        elif above := next((str(parent) for parent in path.parents if str(parent) in seen), ""):
            wrong.append(Violation(field, f"found {file.path!r} in {above!r}, a file; expected a folder"))
        seen.add(file.path)
    return wrong
