"""The contracts are, name by name and number by number, those of the engines that Gantry replaces and talks to.

wire_identity.json holds nothing but facts: per message its fields, per enum its values, per service its methods. It was
taken from a descriptor set that protoc made of the engines' own files. To take it again, from newer ones::

    protoc --include_imports --descriptor_set_out=SET ... && python test_wire_identity.py SET > wire_identity.json
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

import gantry.contracts

RECORDED = Path(__file__).with_name("wire_identity.json")
Facts = dict[str, dict[str, list[str]]]
Field = descriptor_pb2.FieldDescriptorProto
Message = descriptor_pb2.DescriptorProto


def facts(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> Facts:
    """What the wire and its clients depend on, in a form that a person can read in a diff."""
    found: Facts = {"messages": {}, "enums": {}, "services": {}, "extensions": {}}
    for file in files:
        for message in file.message_type:
            add_message(found, file.package, message)
        for enum in file.enum_type:
            add_enum(found, file.package, enum)
        for service in file.service:
            found["services"][f"{file.package}.{service.name}"] = [method_fact(method) for method in service.method]
        for field in file.extension:
            found["extensions"].setdefault(field.extendee[1:], []).append(f"{file.package}: {field_fact(field)}")
    return {
        kind: {name: sorted(entries[name], key=by_number) for name in sorted(entries)}
        for kind, entries in found.items()
    }


def by_number(fact: str) -> tuple[int, str]:
    """Fields and values in the order of their numbers, methods by name: the order in a file means nothing."""
    number = re.search(r" = (\d+)", fact)
    return (int(number[1]) if number else 0, fact)


def add_message(found: Facts, scope: str, message: Message) -> None:
    name = f"{scope}.{message.name}"
    found["messages"][name] = [field_fact(field, message, name) for field in message.field]
    for enum in message.enum_type:
        add_enum(found, name, enum)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            add_message(found, name, nested)


def add_enum(found: Facts, scope: str, enum: descriptor_pb2.EnumDescriptorProto) -> None:
    found["enums"][f"{scope}.{enum.name}"] = [f"{value.name} = {value.number}" for value in enum.value]


def field_fact(field: Field, message: Message | None = None, name: str = "") -> str:
    declared = f"{label(field)}{type_name(field)} {field.name} = {field.number}"
    if message is None:
        return declared
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name == f".{name}.{nested.name}":
            declared = f"map<{', '.join(type_name(part) for part in nested.field)}> {field.name} = {field.number}"
    if field.HasField("oneof_index") and not field.proto3_optional:
        declared += f" in {message.oneof_decl[field.oneof_index].name}"
    return declared


def label(field: Field) -> str:
    if field.label == Field.LABEL_REPEATED:
        return "repeated "
    return "optional " if field.proto3_optional else ""


def type_name(field: Field) -> str:
    return field.type_name[1:] or Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def method_fact(method: descriptor_pb2.MethodDescriptorProto) -> str:
    request = "stream " * method.client_streaming + method.input_type[1:]
    response = "stream " * method.server_streaming + method.output_type[1:]
    return f"{method.name}({request}) returns ({response})"


def generated_files() -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """The descriptor of every generated module."""
    for module in pkgutil.walk_packages(gantry.contracts.__path__, "gantry.contracts."):
        if module.name.endswith("_pb2"):
            file = descriptor_pb2.FileDescriptorProto()
            importlib.import_module(module.name).DESCRIPTOR.CopyToProto(file)
            yield file


def is_theirs(name: str) -> bool:
    return name.startswith(("containerd.", "io.containerd.", "runtimeoptions."))


@pytest.fixture(scope="module")
def recorded() -> Facts:
    facts_of_the_engines: Facts = json.loads(RECORDED.read_text(encoding="utf-8"))
    return facts_of_the_engines


@pytest.fixture(scope="module")
def ours() -> Facts:
    return facts(file for file in generated_files() if is_theirs(file.package))


@pytest.mark.parametrize("kind", ["messages", "enums", "services", "extensions"])
def test_equals_what_was_recorded(kind: str, ours: Facts, recorded: Facts) -> None:
    """Nothing is missing, nothing is added, nothing differs."""
    assert ours[kind] == recorded[kind]


def test_the_record_is_not_empty(recorded: Facts) -> None:
    """A record that was cut short would make the comparison worth nothing."""
    counts = {kind: len(entries) for kind, entries in recorded.items()}
    assert counts == {"messages": 315, "enums": 5, "services": 19, "extensions": 2}


def test_contracts_keep_their_path() -> None:
    """A file lies where its package says, as importers of the contracts in any language expect."""
    for file in generated_files():
        assert Path(file.name).parent.as_posix() == file.package.replace(".", "/")


if __name__ == "__main__":
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    json.dump(facts(file for file in descriptors.file if is_theirs(file.package)), sys.stdout, indent=1)
    print()
