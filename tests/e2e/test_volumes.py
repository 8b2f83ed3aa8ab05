"""Named volumes, bind mounts and what is copied into an empty volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.engine import Engine

same_files = pytest.mark.skipif("GANTRY_ENGINE" in os.environ, reason="the engine has a file system of its own")


def test_named_volume_outlives_its_container(clean: Engine) -> None:
    """Data written through -v NAME:PATH is there for the next container."""
    clean.docker("run", "--rm", "-v", "vol:/store", "busybox", "sh", "-c", "echo kept > /store/file")
    assert clean.out("run", "--rm", "-v", "vol:/store", "busybox", "cat", "/store/file") == "kept"
    assert clean.out("volume", "ls", "-q") == "vol"
    clean.docker("volume", "rm", "vol")
    assert clean.out("volume", "ls", "-q") == ""


def test_image_content_is_copied_into_an_empty_volume(clean: Engine) -> None:
    """What the image has at the mount point appears in a new volume, once."""
    assert clean.out("run", "--rm", "-v", "data:/data", "busybox", "cat", "/data/shipped") == "from the image"
    clean.docker("run", "--rm", "-v", "data:/data", "busybox", "sh", "-c", "echo mine > /data/shipped")
    assert clean.out("run", "--rm", "-v", "data:/data", "busybox", "cat", "/data/shipped") == "mine"
    clean.docker("volume", "rm", "data")


@same_files
def test_bind_mounts(clean: Engine, tmp_path: Path) -> None:
    """-v of a host directory, writable and read-only; a missing one is made, as Docker does."""
    (tmp_path / "in").write_text("from the host\n")
    assert clean.out("run", "--rm", "-v", f"{tmp_path}:/host:ro", "busybox", "cat", "/host/in") == "from the host"
    done = clean.docker("run", "--rm", "-v", f"{tmp_path}:/host:ro", "busybox", "touch", "/host/x", check=False)
    assert "Read-only file system" in done.stderr
    clean.docker("run", "--rm", "-v", f"{tmp_path}/made:/host", "busybox", "sh", "-c", "echo out > /host/out")
    assert (tmp_path / "made" / "out").read_text() == "out\n"
    done = clean.docker(
        "run", "--rm", "--mount", f"type=bind,src={tmp_path}/none,dst=/x", "busybox", "true", check=False
    )
    assert done.returncode == 125
    assert "bind source path does not exist" in done.stderr


def test_volume_in_use_is_not_removed(clean: Engine) -> None:
    """A volume that a container names stays."""
    identifier = clean.out("create", "-v", "used:/x", "busybox")
    done = clean.docker("volume", "rm", "used", check=False)
    assert done.returncode == 1
    assert f"volume is in use - [{identifier}]" in done.stderr
    clean.docker("rm", identifier)
    clean.docker("volume", "rm", "used")


def test_anonymous_volumes_go_with_rm(clean: Engine) -> None:
    """--rm and rm -v take anonymous volumes along."""
    clean.docker("run", "--rm", "-v", "/anonymous", "busybox", "touch", "/anonymous/x")
    assert clean.out("volume", "ls", "-q") == ""


def test_volume_commands(clean: Engine) -> None:
    """create, inspect, ls with filters, prune."""
    assert clean.out("volume", "create", "--label", "k=v", "one") == "one"
    assert clean.out("volume", "inspect", "-f", "{{.Labels.k}} {{.Driver}}", "one") == "v local"
    assert clean.out("volume", "ls", "-q", "--filter", "label=k=v") == "one"
    clean.docker("volume", "prune", "-a", "-f")
    assert clean.out("volume", "ls", "-q") == ""
    done = clean.docker("volume", "inspect", "none", check=False)
    assert "no such volume" in done.stderr.lower()


@same_files
def test_symlink_in_the_image_does_not_lead_out(clean: Engine, tmp_path: Path) -> None:
    """A mount point below a symlink is resolved inside the container's root."""
    (tmp_path / "secret").mkdir()
    clean.docker("volume", "create", "vv")
    script = f"mkdir -p /up && ln -s ../../../../../../{tmp_path}/secret /up/link"
    clean.docker("run", "--name", "linker", "busybox", "sh", "-c", script)
    # a second start mounts over a path that now has the link in it
    clean.docker("rm", "linker")
    done = clean.docker("run", "--rm", "-v", "vv:/bin/../tmp/there", "busybox", "sh", "-c", "echo x > /tmp/there/y")
    assert done.returncode == 0
    assert list((tmp_path / "secret").iterdir()) == []
    clean.docker("volume", "rm", "vv")
