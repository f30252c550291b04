"""The reference of the wire protocol says what the proto files say, in a form that people can click through."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from lowdimfa.services.rpc.v1 import (
    coordinator_pb2,
    handshake_pb2,
    stream_pb2,
    tensors_pb2,
)
from tools.api_page import REFERENCE, render

STUBS = [module.DESCRIPTOR for module in (coordinator_pb2, handshake_pb2, stream_pb2, tensors_pb2)]


def shop() -> FileDescriptorProto:
    file = FileDescriptorProto(name="lowdimfa/services/rpc/v1/shop.proto", package="lowdimfa.v1")
    file.enum_type.add(name="Colour").value.add(name="COLOUR_RED", number=0)
    order = file.message_type.add(name="Order")
    order.field.add(name="colours", number=1, type=FieldDescriptorProto.TYPE_ENUM, label=3)
    order.field[0].type_name = ".lowdimfa.v1.Colour"
    order.field.add(
        name="price", number=2, type=FieldDescriptorProto.TYPE_DOUBLE, label=1, proto3_optional=True
    )
    order.field.add(name="at", number=3, type=FieldDescriptorProto.TYPE_MESSAGE, label=1, oneof_index=0)
    order.field[2].type_name = ".google.protobuf.Timestamp"
    order.oneof_decl.add(name="when")
    service = file.service.add(name="Shop")
    service.method.add(name="Buy", input_type=".lowdimfa.v1.Order", output_type=".lowdimfa.v1.Order")
    service.method[0].server_streaming = True
    for path, comment in (
        ([4, 0], " What is bought.\n\n     a drawing\n"),
        ([4, 0, 2, 1], " In cents | or\n not.\n"),
        (
            [6, 0, 2, 0],
            " Buys.\n\n Errors:\n   NOT_FOUND   there is\n               none\n   UNKNOWN     else\n",
        ),
    ):
        file.source_code_info.location.add(path=path, leading_comments=comment)
    file.source_code_info.location.add(
        path=[4, 0, 2, 2], leading_detached_comments=[" What follows is rare.\n"]
    )
    return file


def test_every_part_of_a_file_is_shown() -> None:
    page = render([shop()])
    assert (
        "#### `Buy`\n\n`/lowdimfa.v1.Shop/Buy`: [`Order`](#order) → stream of [`Order`](#order)\n\nBuys.\n\nErrors:\n\n"
        "| status | when |\n| --- | --- |\n| `NOT_FOUND` | there is none |\n| `UNKNOWN` | else |\n"
    ) in page
    assert "### `Order`\n\nWhat is bought.\n\n```\na drawing\n```\n" in page
    assert "| `colours` | 1 | repeated [`Colour`](#colour) |  |" in page
    assert "| `price` | 2 | optional `double` | In cents \\| or not. |" in page
    assert "|  |  |  | *What follows is rare.* |\n| `at` | 3 | [`Timestamp`](https://" in page
    assert "#timestamp), one of `when` |" in page
    assert "| `COLOUR_RED` | 0 |  |" in page


def test_the_job_service_comes_first_and_other_peoples_files_not_at_all() -> None:
    others = [
        FileDescriptorProto(name=name) for name in ("google/a.proto", "x/a.proto", "x/coordinator.proto")
    ]
    found = re.findall(r"^## `(\S+)`$", render(others), re.MULTILINE)
    assert found == ["coordinator.proto", "a.proto"]


def test_the_reference_has_everything_that_the_stubs_have() -> None:
    page = REFERENCE.read_text("utf-8")
    sections = dict(
        re.findall(r"^#+ (?:Service )?`([\w.]+)`\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    )
    for file in STUBS:
        for service in file.services_by_name.values():
            assert service.name in sections
            for method in service.methods:
                assert f"`/{service.full_name}/{method.name}`" in sections[method.name]
        for message in file.message_types_by_name.values():
            for field in message.fields:
                assert f"| `{field.name}` | {field.number} | " in sections[message.name]
        for enum in file.enum_types_by_name.values():
            for value in enum.values:
                assert f"| `{value.name}` | {value.number} | " in sections[enum.name]


def test_every_link_leads_to_one_heading() -> None:
    page = REFERENCE.read_text("utf-8")
    headings = [
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    ]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(headings)


def test_every_message_of_the_job_service_and_every_call_says_what_it_is() -> None:
    page = REFERENCE.read_text("utf-8").split("## `handshake.proto`")[0]
    for method in coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods:
        text = page.split(f"#### `{method.name}`\n")[1].split("\n#")[0]
        assert len(text.strip().split("\n\n")) >= 2, method.name


@pytest.mark.parametrize("comment", ["", "\n"])
def test_nothing_to_say_leaves_no_gap(comment: str) -> None:
    file = shop()
    for location in file.source_code_info.location:
        location.leading_comments = comment
    assert "\n\n\n" not in render([file])
