"""Importing contracts costs and touches no more than it has to."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import gantry.contracts

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(gantry.contracts.__path__, "gantry.contracts.")
    if module.name.endswith(("_pb2", "_pb2_grpc"))
)
GRPC_MODULES = [name for name in MODULES if name.endswith("_pb2_grpc")]

IMPORT_ALL = """\
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(list(sys.modules)))
"""


def modules_loaded_by(names: list[str]) -> set[str]:
    """Names in sys.modules after a fresh interpreter has imported ``names``."""
    done = subprocess.run([sys.executable, "-P", "-c", IMPORT_ALL, *names], stdout=subprocess.PIPE, check=True)
    return set(json.loads(done.stdout))


def test_messages_never_import_grpc() -> None:
    """The shim uses every kind of message and cannot afford grpc."""
    messages = [name for name in MODULES if name.endswith("_pb2")]
    assert not {name for name in modules_loaded_by(messages) if name.split(".")[0] in {"grpc", "grpc_status"}}


def test_top_level_names_of_the_wire_are_left_to_others() -> None:
    """``containerd`` is the service's own package, and ``io`` the interpreter's."""
    loaded = modules_loaded_by(MODULES)
    assert "gantry.contracts.containerd.services.tasks.v1.tasks_pb2" in loaded
    assert not {name for name in loaded if name.split(".")[0] in {"containerd", "runtimeoptions"}}
    assert not {name for name in loaded if name.startswith(("io.", "gantry.shim", "gantry.stdio"))}


def test_classes_know_the_module_they_live_in() -> None:
    """Otherwise pickle, copyreg and tracebacks look for a top-level ``containerd``."""
    from gantry.contracts.containerd.types import mount_pb2

    assert mount_pb2.Mount.__module__ == mount_pb2.__name__ == "gantry.contracts.containerd.types.mount_pb2"


@pytest.mark.parametrize("name", GRPC_MODULES)
def test_grpc_modules_have_client_and_server(name: str) -> None:
    """Each service gets a stub and a servicer, under the name that it has on the wire."""
    messages = importlib.import_module(name.removesuffix("_grpc"))
    module = importlib.import_module(name)
    for service in messages.DESCRIPTOR.services_by_name:
        assert callable(getattr(module, f"{service}Stub"))
        assert callable(getattr(module, f"add_{service}Servicer_to_server"))


def test_ttrpc_services_have_no_grpc_module() -> None:
    """What shims serve and call goes over ttrpc."""
    served = {name.rpartition(".")[0] for name in GRPC_MODULES}
    assert len(served) == 14
    assert not {name for name in served if ".task." in name or ".ttrpc." in name or ".runtime." in name}
