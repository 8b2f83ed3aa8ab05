"""JSON bodies of the Engine API into the model, as forgiving as the real engine's decoder and no more.

Go's decoder takes names in any letter case and ``null`` for any value; a wrong type is an error that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

from dockerd import errors

__all__ = ["from_wire", "unknown_keys"]

T = TypeVar("T", bound=msgspec.Struct)


def from_wire(body: Mapping[str, Any], kind: type[T]) -> T:
    """The value of type ``kind`` that ``body`` describes. Keys that it does not know are left out.

    Raises InvalidParameter naming the field and the type that it should have.
    """
    try:
        return msgspec.convert(_canonical(body, _type_info(kind)), kind)
    except msgspec.ValidationError as error:
        raise errors.InvalidParameter(f"invalid JSON: {error}") from None


def unknown_keys(body: Mapping[str, Any], kind: type[msgspec.Struct]) -> list[str]:
    """Keys of ``body`` that ``kind`` does not know and that ask for something."""
    known = _names(kind)
    return [key for key, value in body.items() if value and key.lower() not in known]


@cache
def _type_info(kind: type[msgspec.Struct]) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(kind)


@cache
def _names(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {field.encode_name.lower(): field.encode_name for field in msgspec.structs.fields(kind)}


def _canonical(value: Any, info: msgspec.inspect.Type) -> Any:
    """``value`` with the model's spelling of names, and without the nulls."""
    if isinstance(info, msgspec.inspect.UnionType):
        concrete = [kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)]
        return _canonical(value, concrete[0]) if value is not None and len(concrete) == 1 else value
    if isinstance(info, msgspec.inspect.StructType) and isinstance(value, Mapping):
        names = _names(info.cls)
        kinds = {field.encode_name: field.type for field in info.fields}
        fields = {}
        for key, item in value.items():
            name = names.get(str(key).lower())
            if name is not None and item is not None:
                fields[name] = _canonical(item, kinds[name])
        return fields
    if isinstance(info, msgspec.inspect.ListType) and isinstance(value, list):
        return [_canonical(item, info.item_type) for item in value]
    if isinstance(info, msgspec.inspect.DictType) and isinstance(value, Mapping):
        # Go reads null as the zero value here: ExposedPorts {"80/tcp": null}, Labels {"a": null}.
        return {
            str(key): _zero(info.value_type) if item is None else _canonical(item, info.value_type)
            for key, item in value.items()
        }
    return value


def _zero(info: msgspec.inspect.Type) -> Any:
    if isinstance(info, msgspec.inspect.StrType):
        return ""
    return {} if isinstance(info, msgspec.inspect.DictType) else None
