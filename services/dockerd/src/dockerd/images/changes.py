"""``--change``: the Dockerfile instructions that alter an image's configuration without running anything."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from dockerd import errors

__all__ = ["apply_changes"]

Json = dict[str, Any]

_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)\s*(.*?)\s*", re.DOTALL)
_SHELL = ["/bin/sh", "-c"]


def apply_changes(config: Json, changes: Iterable[str]) -> Json:
    """Return ``config`` (the ``config`` part of an image's configuration) with the instructions applied.

    Raises InvalidParameter for an instruction that is unknown, not allowed here, or malformed.
    """
    changed = json.loads(json.dumps(config))
    for change in changes:
        for line in change.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                _apply(changed, line)
    return changed  # type: ignore[no-any-return]


def _apply(config: Json, line: str) -> None:
    match = _INSTRUCTION.fullmatch(line)
    name = match[1].upper() if match else ""
    instruction = _INSTRUCTIONS.get(name)
    if match is None or instruction is None:
        raise errors.InvalidParameter(f"{name or line.strip()} is not a valid change command")
    if not match[2]:
        raise errors.InvalidParameter(f"{name} requires at least one argument")
    instruction(config, match[2])


def _json_list(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise errors.InvalidParameter(f"{text}: {error}") from error


def _command(key: str) -> Callable[[Json, str], None]:
    def apply(config: Json, text: str) -> None:
        listed = _json_list(text)
        config[key] = listed if listed is not None else [*(config.get("Shell") or _SHELL), text]
        if key == "Entrypoint" and listed is not None and "Cmd" in config:
            # The old arguments were meant for the old program.
            del config["Cmd"]

    return apply


def _pairs(name: str, text: str) -> list[tuple[str, str]]:
    words = _words(text)
    if all("=" in word for word in words):
        return [(word.partition("=")[0], word.partition("=")[2]) for word in words]
    key, _, value = text.partition(" ")
    if not value or "=" in key:
        raise errors.InvalidParameter(
            f"Syntax error - can't find = in {text!r}. Must be of the form: name=value ({name})"
        )
    return [(key, value.strip())]


def _environment(config: Json, text: str) -> None:
    variables: list[str] = list(config.get("Env") or [])
    for key, value in _pairs("ENV", text):
        variables = [item for item in variables if item.partition("=")[0] != key]
        variables.append(f"{key}={value}")
    config["Env"] = variables


def _labels(config: Json, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs("LABEL", text))}


def _expose(config: Json, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _words(text):
        number, _, protocol = word.partition("/")
        if not number.isdigit() or not 0 < int(number) < 1 << 16:
            raise errors.InvalidParameter(f"invalid port specification: {word!r} (EXPOSE)")
        ports[f"{int(number)}/{(protocol or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: Json, text: str) -> None:
    listed = _json_list(text)
    paths = listed if listed is not None else _words(text)
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _working_directory(config: Json, text: str) -> None:
    base = config.get("WorkingDir") or "/"
    config["WorkingDir"] = text if text.startswith("/") else f"{base.rstrip('/')}/{text}"


def _on_build(config: Json, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _shell(config: Json, text: str) -> None:
    listed = _json_list(text)
    if listed is None:
        raise errors.InvalidParameter("SHELL requires the arguments to be in JSON form")
    config["Shell"] = listed


def _single(key: str) -> Callable[[Json, str], None]:
    def apply(config: Json, text: str) -> None:
        config[key] = text

    return apply


_INSTRUCTIONS: dict[str, Callable[[Json, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _environment,
    "EXPOSE": _expose,
    "LABEL": _labels,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _single("StopSignal"),
    "USER": _single("User"),
    "VOLUME": _volume,
    "WORKDIR": _working_directory,
}
