"""Build hook: compiles proto/ into ``gantry.contracts`` while a distribution is built.

The contracts are found in the repository, or inside the source distribution, which carries them. A wheel gets the
modules without the source tree being touched; an editable install gets them in the source tree, where git ignores
them. Run as a script, this file refreshes them there::

    python libs/contracts/hatch_build.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "gantry.contracts"
"""Everything generated lives below this package: the top-level names ``containerd`` and ``io`` belong to others."""

NOT_GENERATED = "third_party"
"""Below proto/: compiled against, but their Python modules come from other distributions."""

TTRPC_PACKAGES = frozenset(
    {
        "containerd.runtime.sandbox.v1",
        "containerd.services.events.ttrpc.v1",
        "containerd.task.v2",
        "containerd.task.v3",
    }
)
"""Packages whose services are served over ttrpc, and so have no use for a grpc module."""


class ProtocError(Exception):
    """protoc did not accept the contracts; it has said on stderr why."""


class ContractsBuildHook(BuildHookInterface[Any]):
    """Puts what is generated into wheels and editable installs, and the contracts into source distributions."""

    _generated: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        proto = find_proto(root)
        if self.target_name == "sdist":
            build_data["force_include"][str(proto)] = "proto"
        elif version == "editable":
            generate(proto, root / "src")
        else:
            self._generated = tempfile.TemporaryDirectory(prefix="gantry-contracts-")
            for path in generate(proto, Path(self._generated.name)):
                build_data["force_include"][str(path)] = str(path.relative_to(self._generated.name))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if self._generated is not None:
            self._generated.cleanup()


def find_proto(root: Path) -> Path:
    """The folder of the contracts: in a source distribution beside this file, in the repository two levels up."""
    for candidate in (root / "proto", root.parent.parent / "proto"):
        if (candidate / "buf.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"no proto/ with the contracts in {root} or {root.parent.parent}: "
        "build from the repository or a source distribution"
    )


def generate(proto: Path, source_root: Path) -> list[Path]:
    """Writes the modules of every contract in ``proto`` below ``source_root``; returns their files, sorted.

    Modules left there by an earlier run whose contract is gone are removed. Raises ProtocError.
    """
    files = contract_files(proto)
    modules = {path: relocate(text, files) for path, text in compile_contracts(proto, files).items()}
    for folder in {parent for path in modules for parent in path.parents if parent.parts}:
        modules[folder / "__init__.py"] = f'"""Generated from the contracts in proto/{folder.as_posix()}."""\n'
    package = source_root.joinpath(*PACKAGE.split("."))
    remove_stale(package, modules)
    for path, text in modules.items():
        write_if_changed(package / path, text)
    return sorted(package / path for path in modules)


def contract_files(proto: Path) -> list[str]:
    """Paths of the contracts relative to ``proto``, as they are written in an import."""
    paths = (path.relative_to(proto) for path in proto.rglob("*.proto"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != NOT_GENERATED)


def compile_contracts(proto: Path, files: Sequence[str]) -> dict[Path, str]:
    """The text of every module and stub, by its path relative to where protoc believes its root to be."""
    with tempfile.TemporaryDirectory(prefix="gantry-contracts-") as scratch:
        out = Path(scratch)
        descriptor_set = out / "descriptors"
        run_protoc(
            proto,
            ["--include_imports", "--include_source_info", f"--descriptor_set_out={descriptor_set}"],
            [f"--python_out={out}", f"--pyi_out={out}"],
            files,
        )
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes())
        served_by_grpc = [file.name for file in descriptors.file if file.service and file.package not in TTRPC_PACKAGES]
        run_protoc(proto, [f"--grpc_python_out={out}"], served_by_grpc)
        modules = {path.relative_to(out): path.read_text(encoding="utf-8") for path in out.rglob("*.py*")}
    return modules | grpc_stubs(descriptors, served_by_grpc)


def run_protoc(proto: Path, *arguments: Sequence[str]) -> None:
    """Runs the protoc inside grpcio-tools, which carries the well-known types too. Raises ProtocError."""
    well_known = Path(protoc.__file__).parent / "_proto"
    command = ["protoc", *(f"--proto_path={path}" for path in (proto, proto / NOT_GENERATED, well_known))]
    command += [argument for group in arguments for argument in group]
    status = protoc.main(command)
    if status != 0:
        raise ProtocError(f"protoc exited with status {status}; it was called as {' '.join(command)}")


def grpc_stubs(descriptors: descriptor_pb2.FileDescriptorSet, files: Sequence[str]) -> dict[Path, str]:
    """The type stubs of the grpc modules, which protoc does not write, from mypy-protobuf.

    The plugin is run by module and not by its script: an isolated build has the script in a folder that only PATH
    knows, and a build without isolation has not even that.
    """
    request = plugin_pb2.CodeGeneratorRequest(file_to_generate=files, parameter="quiet", proto_file=descriptors.file)
    command = [sys.executable, "-P", "-c", "from mypy_protobuf.main import grpc; grpc()"]
    done = subprocess.run(command, input=request.SerializeToString(), stdout=subprocess.PIPE, check=True)
    response = plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)
    if response.error:
        raise ProtocError(f"mypy-protobuf could not write the grpc stubs: {response.error}")
    return {Path(file.name): file.content for file in response.file}


def relocate(text: str, files: Collection[str]) -> str:
    """Moves a generated module below PACKAGE: what it imports of ours, and the name its classes are told to live in."""

    def moved(match: re.Match[str]) -> str:
        contract = f"{match['package'].replace('.', '/')}/{match['module']}.proto"
        if contract not in files:
            return match[0]
        return f"from {PACKAGE}.{match['package']} import {match['module']}_pb2"

    text = re.sub(r"^from (?P<package>[\w.]+) import (?P<module>\w+)_pb2\b", moved, text, flags=re.MULTILINE)
    names_its_module = "BuildTopDescriptorsAndMessages(DESCRIPTOR, '"
    return text.replace(names_its_module, f"{names_its_module}{PACKAGE}.")


def remove_stale(package: Path, modules: Collection[Path]) -> None:
    """Removes generated files that are not among ``modules``, and the folders that this leaves empty."""
    for path in sorted(package.rglob("*"), reverse=True):
        relative = path.relative_to(package)
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif len(relative.parts) > 1 and path.suffix in {".py", ".pyi"} and relative not in modules:
            path.unlink()


def write_if_changed(path: Path, text: str) -> None:
    """Writes a file whole or not at all: others may be importing from the folder."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    generate(find_proto(here), here / "src")
