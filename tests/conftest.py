from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.engine import Engine, await_true, engine, import_busybox
from support.machine import observe


@pytest.fixture(scope="session", autouse=True)
def machine() -> Iterator[str]:
    """Give the session a token for its processes, and assert at its end that nothing of it is left on the machine."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    token = secrets.token_hex(8)
    before = observe(token)
    yield token
    try:
        await_true(lambda: not observe(token).added_since(before), "left behind", 10)
    except AssertionError:
        raise AssertionError(f"left behind: {observe(token).added_since(before)}") from None


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Callable[[], Path]]:
    """Make directories with short names: a unix socket's path has 108 bytes, podman's runroot 50."""
    with ExitStack() as stack:

        def make() -> Path:
            directory = tempfile.mkdtemp(prefix="gt-")
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            return Path(directory)

        yield make


@pytest.fixture(scope="session")
def make_engine(machine: str, short_directory: Callable[[], Path]) -> Iterator[Callable[..., Engine]]:
    """Make started engines, each in a directory of its own; all are gone at the session's end."""
    with ExitStack() as stack:

        def make(image: bool = True, containerd: str | None = None) -> Engine:
            made = stack.enter_context(engine(short_directory(), machine, containerd))
            if image:
                import_busybox(made)
            return made

        yield make


@pytest.fixture(scope="module")
def docker(make_engine: Callable[..., Engine]) -> Engine:
    """One engine for the tests of a module, with a busybox image in it."""
    return make_engine()


@pytest.fixture
def clean(docker: Engine) -> Iterator[Engine]:
    """The module's engine without containers, before and after."""
    docker.remove_containers()
    yield docker
    docker.remove_containers()
