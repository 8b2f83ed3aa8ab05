"""Loading, once and before any fork, what every shim and every runtime call would load again."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib import metadata
from typing import Final

from shim.launch import EntryPoint, find_program
from shim.runtime import DEFAULT_COMMAND

_log = logging.getLogger(__name__)

# Imported where they are used, at the first use: in a fork that would be each time, and, after an upgrade of the
# installed files, another version's code.
_LATE: Final = ("encodings.idna", "encodings.ascii", "encodings.latin_1", "stat", "traceback", "linecache")


def warm_up() -> None:
    """Imports what the standard library would import late."""
    for name in _LATE:
        importlib.import_module(name)


def entry_points(scripts: str) -> list[EntryPoint]:
    """The OCI runtime's entry point, when the runtime that would be run is a Python console script installed here.

    The `preload()` of its module, or of the package that this is in, is called if there is one. Anything that goes
    wrong is logged and means that the binary is executed instead.
    """
    try:
        path = os.path.realpath(find_program(DEFAULT_COMMAND, scripts))
        found = _script_of(path)
        if found is None:
            return []
        call = found.load()
        for name in (found.module, found.module.partition(".")[0]):
            prepare = getattr(sys.modules[name], "preload", None)
            if callable(prepare):
                prepare()
                break
    except Exception as error:
        _log.warning("the runtime's code cannot be loaded, its binary will be executed: %s", error)
        return []
    return [EntryPoint(path, found.name, call)]


def _script_of(path: str) -> metadata.EntryPoint | None:
    """The console script that an installed distribution has put at this path (by its RECORD)."""
    for script in metadata.entry_points(group="console_scripts", name=os.path.basename(path)):
        if script.dist is None:
            continue
        for file in script.dist.files or ():
            if os.path.basename(str(file)) == script.name and os.path.realpath(str(file.locate())) == path:
                return script
    return None
