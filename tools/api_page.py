"""Make the reference of the wire protocol from its comments: ``python -m tools.api_page [--check]``.

Like `tools.stubs`, and in the same environment, it needs grpcio-tools; what it renders needs only protobuf.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools.stubs import PROTO, ROOT, check_tools

REFERENCE = ROOT / "docs" / "api.md"
FIRST = "coordinator.proto"
ELSEWHERE = {
    ".google.protobuf.Struct": (
        "Struct",
        "https://protobuf.dev/reference/protobuf/google.protobuf/#struct",
    ),
    ".google.protobuf.Timestamp": (
        "Timestamp",
        "https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp",
    ),
}

_INTRODUCTION = """\
<!-- Made by `python -m tools.api_page` from the comments in proto/: change it there. -->
# API reference

Everything that this project says over gRPC is defined in `proto/`, package `lowdimfa.v1`. Programs of any language need
only these files: the [job service](#coordinatorproto) is for them. The other files are what the blocks of a run say to
each other, and change with the version of the handshake's `protocol`. The service also answers `grpc.health.v1` and
server reflection. [quickstart.md](quickstart.md#from-another-language) has a client in a few lines.

A field that isn't `optional` has its type's zero where it was not set. Fields are only ever added, with new numbers.
"""

Path_ = tuple[int, ...]
"""Where something is in a file's descriptor: field numbers and positions, as protobuf's `SourceCodeInfo` has them."""

_MESSAGE, _ENUM, _SERVICE = 4, 5, 6  # of FileDescriptorProto
_NESTED_FIELD, _NESTED_MESSAGE, _NESTED_ENUM = 2, 3, 4  # of DescriptorProto
_PART = 2  # values of EnumDescriptorProto, methods of ServiceDescriptorProto


class Comments:
    """The comments of a file, by what they stand before.

    Parameters
    ----------
    file
        With its source information.
    """

    def __init__(self, file: FileDescriptorProto) -> None:
        self._leading: dict[Path_, str] = {}
        self._detached: dict[Path_, list[str]] = {}
        for location in file.source_code_info.location:
            self._leading[tuple(location.path)] = _unindented(location.leading_comments)
            self._detached[tuple(location.path)] = [
                _unindented(text) for text in location.leading_detached_comments
            ]

    def of(self, path: Path_) -> str:
        """Return a comment as Markdown."""
        return "\n\n".join(_blocks(self._leading.get(path, "")))

    def in_row(self, path: Path_) -> str:
        """Return a comment as the cell of a table."""
        return _cell(self._leading.get(path, ""))

    def before(self, path: Path_) -> list[str]:
        """Return the comments that stand alone before something, as cells of a table."""
        return [_cell(text) for text in self._detached.get(path, [])]


def _unindented(text: str) -> str:
    return "\n".join(line.removeprefix(" ").rstrip() for line in text.strip("\n").split("\n"))


def _cell(text: str) -> str:
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "<br>".join(part for part in paragraphs if part).replace("|", "\\|")


def _blocks(comment: str) -> Iterator[str]:
    """Yield paragraphs, drawings, and lists of status codes (``  CODE  meaning``) as tables."""
    for block in comment.split("\n\n"):
        lines = [line for line in block.split("\n") if line]
        if lines and all(line.startswith("    ") for line in lines):
            yield "```\n" + "\n".join(line.removeprefix("    ") for line in lines) + "\n```"
            continue
        text = [line for line in lines if not line.startswith(" ")]
        if text:
            yield "\n".join(text)
        rows: list[tuple[str, str]] = []
        for line in lines:
            code = re.match(r"  ([A-Z_]+)\s\s+(\S.*)", line)
            if code:
                rows.append((code[1], code[2]))
            elif line.startswith(" ") and rows:
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
        if rows:
            yield _table(("status", "when"), [(f"`{code}`", _cell(when)) for code, when in rows])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(files: Sequence[FileDescriptorProto]) -> str:
    """Return the page: the job service first, then the other files by name.

    Parameters
    ----------
    files
        With their source information; without it there are no comments.
    """
    ours = [file for file in files if not file.name.startswith("google/")]
    ours.sort(key=lambda file: (Path(file.name).name != FIRST, file.name))
    parts = [_INTRODUCTION.rstrip()]
    for file in ours:
        parts += _file(file)
    return "\n\n".join(part for part in parts if part) + "\n"


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = Comments(file)
    yield f"## `{Path(file.name).name}`"
    for number, service in enumerate(file.service):
        yield from _service(service, comments, (_SERVICE, number), file.package)
    for number, message in enumerate(file.message_type):
        yield from _message(message, comments, (_MESSAGE, number), "")
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (_ENUM, number), "")


def _service(service: ServiceDescriptorProto, comments: Comments, path: Path_, package: str) -> Iterator[str]:
    yield f"### Service `{service.name}`"
    yield comments.of(path)
    for number, method in enumerate(service.method):
        sides = [
            f"{'stream of ' if streams else ''}{_link(kind)}"
            for kind, streams in (
                (method.input_type, method.client_streaming),
                (method.output_type, method.server_streaming),
            )
        ]
        yield f"#### `{method.name}`"
        yield f"`/{package}.{service.name}/{method.name}`: {sides[0]} → {sides[1]}"
        yield comments.of((*path, _PART, number))


def _message(message: DescriptorProto, comments: Comments, path: Path_, outer: str) -> Iterator[str]:
    name = outer + message.name
    yield f"### `{name}`"
    yield comments.of(path)
    rows = []
    for number, field in enumerate(message.field):
        place = (*path, _NESTED_FIELD, number)
        rows += [("", "", "", f"*{note}*") for note in comments.before(place)]
        rows.append((f"`{field.name}`", str(field.number), _kind(field, message), comments.in_row(place)))
    yield _table(("field", "number", "type", "meaning"), rows) if rows else "No fields."
    for number, inner in enumerate(message.nested_type):
        if inner.options.map_entry:
            continue  # protobuf's own way to write a map
        yield from _message(inner, comments, (*path, _NESTED_MESSAGE, number), f"{name}.")
    for number, enum in enumerate(message.enum_type):
        yield from _enum(enum, comments, (*path, _NESTED_ENUM, number), f"{name}.")


def _enum(enum: EnumDescriptorProto, comments: Comments, path: Path_, outer: str) -> Iterator[str]:
    yield f"### `{outer}{enum.name}`"
    yield comments.of(path)
    rows = [
        (f"`{value.name}`", str(value.number), comments.in_row((*path, _PART, number)))
        for number, value in enumerate(enum.value)
    ]
    yield _table(("value", "number", "meaning"), rows)


def _kind(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for inner in message.nested_type:
        if inner.options.map_entry and field.type_name.endswith(f".{inner.name}"):
            return f"map from {_kind(inner.field[0], inner)} to {_kind(inner.field[1], inner)}"
    if field.type_name:
        kind = _link(field.type_name)
    else:
        kind = f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def _link(full_name: str) -> str:
    """Return a link to a type, ``.lowdimfa.v1.Job``; a heading's anchor is its text without dots, in small letters."""
    if full_name in ELSEWHERE:
        return "[`{}`]({})".format(*ELSEWHERE[full_name])
    name = re.sub(r"^(\.[a-z][a-z0-9_]*)*\.", "", full_name)
    return f"[`{name}`](#{name.replace('.', '').lower()})"


def described() -> list[FileDescriptorProto]:
    """Return every proto file with its comments."""
    from grpc_tools import protoc  # type: ignore[import-not-found, unused-ignore]

    bundled = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "all.binpb"
        arguments = [f"-I{PROTO}", f"-I{bundled}", f"--descriptor_set_out={output}", "--include_source_info"]
        if protoc.main(["protoc", *arguments, *sources]) != 0:
            sys.exit("protoc refused the proto files; its messages are above.")
        return list(FileDescriptorSet.FromString(output.read_bytes()).file)


def main() -> None:
    """Write the reference, or compare it with the proto files."""
    parser = argparse.ArgumentParser(prog="python -m tools.api_page", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if the page differs from proto/"
    )
    arguments = parser.parse_args()
    check_tools()
    page = render(described())
    if not arguments.check:
        REFERENCE.write_text(page, encoding="utf-8")
    elif not REFERENCE.exists() or REFERENCE.read_text("utf-8") != page:
        sys.exit(f"{REFERENCE.relative_to(ROOT)} differs from proto/. Run 'python -m tools.api_page'.")


if __name__ == "__main__":
    main()
