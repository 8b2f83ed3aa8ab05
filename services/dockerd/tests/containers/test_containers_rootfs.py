from __future__ import annotations

import os
from pathlib import Path

import pytest

from dockerd.containers import rootfs
from gantry.contracts.containerd.types import mount_pb2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def snapshot(directory: Path, layers: int) -> mount_pb2.Mount:
    """An overlay of so many layers; each has a file of its own, and says in `who` which it is."""
    paths = [directory / f"a layer, of a long name {number:03}" for number in range(layers)]
    for path in paths:
        path.mkdir()
        (path / path.name[-3:]).touch()
        (path / "who").write_text(path.name[-3:])
    return mount_pb2.Mount(type="overlay", source="overlay", options=[f"lowerdir={':'.join(map(str, paths))}"])


@pytest.mark.parametrize("layers", [1, 2, 120])
@pytest.mark.parametrize("singly", [True, False])
def test_layers_are_seen_as_one_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, singly: bool
) -> None:
    """However many there are, on kernels that are told each layer and on those that are told all at once."""
    if singly and not rootfs._layers_are_told_singly():
        pytest.skip("the kernel has no lowerdir+")
    monkeypatch.setattr(rootfs, "_layers_are_told_singly", lambda: singly)
    before = Path("/proc/self/mountinfo").read_text()
    with rootfs.open_rootfs([snapshot(tmp_path, layers)]) as root:
        assert len(os.listdir(f"/proc/self/fd/{root}")) == layers + 1
        assert rootfs.read_file(root, "/who") == "000"
        assert Path("/proc/self/mountinfo").read_text() == before


def test_a_kernel_that_takes_any_option_is_not_told_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.5 the option is refused only when the mount is made."""
    monkeypatch.setattr(rootfs.mount, "fsconfig", lambda *words: None)
    assert not rootfs._layers_are_told_singly.__wrapped__()
