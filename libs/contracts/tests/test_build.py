"""The build hook turns proto/ into modules, wherever it runs and whatever ran before."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent.parent
CONTRACT = """\
syntax = "proto3";
package {package};
import "google/protobuf/empty.proto";
message Thing {{ string name = 1; }}
service Things {{ rpc Take(Thing) returns (google.protobuf.Empty); }}
"""
IMPORTER = """\
syntax = "proto3";
package shop.v2;
import "shop/v1/things.proto";
import "other/names.proto";
message More { shop.v1.Thing thing = 1; other.Name name = 2; }
"""


@pytest.fixture(scope="module")
def hatch_build() -> ModuleType:
    """The build hook as a module."""
    pytest.importorskip("hatchling")
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("hatch_build", HERE / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def proto(tmp_path: Path) -> Path:
    """A small set of contracts: one for gRPC, one that imports it, one for ttrpc, one from elsewhere."""
    root = tmp_path / "proto"
    contracts = {
        "shop/v1/things.proto": CONTRACT.format(package="shop.v1"),
        "shop/v2/more.proto": IMPORTER,
        "containerd/task/v3/shim.proto": CONTRACT.format(package="containerd.task.v3"),
        "third_party/other/names.proto": 'syntax = "proto3";\npackage other;\nmessage Name { string text = 1; }\n',
    }
    for path, text in contracts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def names(paths: list[Path], package: Path) -> set[str]:
    return {path.relative_to(package).as_posix() for path in paths}


def test_generates_messages_stubs_and_grpc(hatch_build: ModuleType, proto: Path, tmp_path: Path) -> None:
    """Each contract gives a module and its stub, and a gRPC service both once more; ttrpc and third_party do not."""
    package = tmp_path / "src/gantry/contracts"
    assert names(hatch_build.generate(proto, tmp_path / "src"), package) == {
        "containerd/__init__.py",
        "containerd/task/__init__.py",
        "containerd/task/v3/__init__.py",
        "containerd/task/v3/shim_pb2.py",
        "containerd/task/v3/shim_pb2.pyi",
        "shop/__init__.py",
        "shop/v1/__init__.py",
        "shop/v1/things_pb2.py",
        "shop/v1/things_pb2.pyi",
        "shop/v1/things_pb2_grpc.py",
        "shop/v1/things_pb2_grpc.pyi",
        "shop/v2/__init__.py",
        "shop/v2/more_pb2.py",
        "shop/v2/more_pb2.pyi",
    }


def test_imports_of_ours_are_moved_and_others_are_not(hatch_build: ModuleType, proto: Path, tmp_path: Path) -> None:
    """Modules import each other below gantry.contracts, and everybody else where they are."""
    hatch_build.generate(proto, tmp_path / "src")
    for suffix in ("py", "pyi"):
        text = (tmp_path / f"src/gantry/contracts/shop/v2/more_pb2.{suffix}").read_text()
        assert "from gantry.contracts.shop.v1 import things_pb2 as" in text
        assert "from other import names_pb2 as" in text
        assert "from gantry.contracts.other" not in text


def test_what_is_generated_twice_is_left_alone(hatch_build: ModuleType, proto: Path, tmp_path: Path) -> None:
    """A second run over the same contracts writes nothing: nobody who imports meanwhile can see half a file."""
    before = {path: path.stat().st_ino for path in hatch_build.generate(proto, tmp_path / "src")}
    assert {path: path.stat().st_ino for path in hatch_build.generate(proto, tmp_path / "src")} == before


def test_modules_of_a_removed_contract_go(hatch_build: ModuleType, proto: Path, tmp_path: Path) -> None:
    """Nothing stale can be imported, and what is written by hand stays."""
    package = tmp_path / "src/gantry/contracts"
    hatch_build.generate(proto, tmp_path / "src")
    (package / "__init__.py").write_text("")
    (proto / "containerd/task/v3/shim.proto").unlink()
    hatch_build.generate(proto, tmp_path / "src")
    assert not (package / "containerd").exists()
    assert (package / "__init__.py").exists()


def test_a_contract_that_does_not_parse_stops_the_build(hatch_build: ModuleType, proto: Path, tmp_path: Path) -> None:
    """Better no distribution than one with a contract missing."""
    (proto / "shop/v1/things.proto").write_text("message {")
    with pytest.raises(hatch_build.ProtocError):
        hatch_build.generate(proto, tmp_path / "src")


def test_contracts_that_cannot_be_found_are_reported(hatch_build: ModuleType, tmp_path: Path) -> None:
    """A copy of this folder alone cannot be built, and says so."""
    with pytest.raises(FileNotFoundError, match="build from the repository or a source distribution"):
        hatch_build.find_proto(tmp_path / "libs/contracts")


def test_floors_are_what_the_generated_code_asks_for() -> None:
    """protobuf and grpcio older than the compiler are refused at import: the pins have to say so before."""
    from gantry.contracts.containerd.services.version.v1 import version_pb2, version_pb2_grpc

    pyproject = tomllib.loads((HERE / "pyproject.toml").read_text())
    grpc = version_pb2_grpc.GRPC_GENERATED_VERSION
    generated = re.search(r"^# Protobuf Python Version: (.+)$", Path(version_pb2.__file__).read_text(), re.MULTILINE)
    assert generated is not None
    assert f"protobuf>={generated[1]},<8" in pyproject["project"]["dependencies"]
    assert pyproject["project"]["optional-dependencies"]["grpc"] == [f"grpcio>={grpc},<2"]
    assert f"grpcio-tools=={grpc}" in pyproject["build-system"]["requires"]


USER = """\
import grpc
from gantry.contracts.containerd.services.version.v1 import version_pb2, version_pb2_grpc
from gantry.contracts.containerd.types import mount_pb2
from gantry.contracts.gantry.stdio.v1 import stdio_pb2
from google.protobuf import empty_pb2

def version(channel: grpc.Channel) -> str:
    reply = version_pb2_grpc.VersionStub(channel).Version(empty_pb2.Empty(), timeout=5)
    reveal_type(reply)
    return reply.version

framing: stdio_pb2.Framing = stdio_pb2.FRAMING_RAW
mount = mount_pb2.Mount(type="bind", options=["ro"])
mount_pb2.Mount(kind="bind")
"""


def test_users_see_types(tmp_path: Path) -> None:
    """mypy --strict knows messages, enums and gRPC calls, and finds a field that does not exist."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    complaints = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert 'gantry.contracts.containerd.services.version.v1.version_pb2.VersionResponse"' in done.stdout
    assert len(complaints) == 1, done.stdout
    assert 'Unexpected keyword argument "kind"' in complaints[0]
