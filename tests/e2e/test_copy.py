"""docker cp in both directions, docker export and docker diff, of running and of stopped containers."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.engine import Engine


@pytest.fixture(params=["running", "created", "exited"])
def container(request: pytest.FixtureRequest, clean: Engine) -> str:
    """A container of busybox in one state, with a volume at /volume and a file of its own, /own."""
    arguments = ("-v", "/volume", "busybox", "sh", "-c", "echo own > /own; echo kept > /volume/in; exec sleep 1000")
    if request.param == "created":
        identifier = clean.out("create", *arguments)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, text in (("own", b"own\n"), ("volume/in", b"kept\n")):
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
        clean.docker("cp", "-", f"{identifier}:/", stdin=archive.getvalue())
        return identifier
    identifier = clean.out("run", "-d", *arguments)
    clean.docker("exec", identifier, "sh", "-c", "until [ -e /volume/in ]; do usleep 10000; done")
    if request.param == "exited":
        clean.docker("kill", identifier)
    return identifier


def raw(engine: Engine, *arguments: str) -> bytes:
    """What the docker CLI writes, as bytes."""
    return subprocess.run(engine.command(*arguments), env=engine.env, capture_output=True, check=True).stdout


def listing(archive: bytes) -> dict[str, tarfile.TarInfo]:
    """The entries of a tar archive by name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def test_files_come_out(clean: Engine, container: str, tmp_path: Path) -> None:
    """A file, a file of a volume and a directory with it are copied to the host."""
    clean.docker("cp", f"{container}:/own", str(tmp_path / "own"))
    assert (tmp_path / "own").read_text() == "own\n"
    clean.docker("cp", f"{container}:/volume", str(tmp_path))
    assert (tmp_path / "volume" / "in").read_text() == "kept\n"
    entries = listing(raw(clean, "cp", f"{container}:/volume", "-"))
    assert sorted(entries) == ["volume", "volume/in"]


def test_files_go_in(clean: Engine, container: str, tmp_path: Path) -> None:
    """A file keeps its mode and content, a directory is merged, and both come out again as they went in."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "program").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "tree" / "sub" / "program").chmod(0o750)
    (tmp_path / "tree" / "link").symlink_to("sub/program")
    clean.docker("cp", str(tmp_path / "tree"), f"{container}:/volume")
    clean.docker("cp", str(tmp_path / "tree" / "sub" / "program"), f"{container}:/tmp/renamed")
    clean.docker("cp", f"{container}:/volume/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "program").read_bytes() == bytes(range(256)) * 5000
    assert (tmp_path / "back" / "sub" / "program").stat().st_mode & 0o777 == 0o750
    assert os.readlink(tmp_path / "back" / "link") == "sub/program"
    entries = listing(raw(clean, "cp", f"{container}:/tmp/renamed", "-"))
    assert entries["renamed"].size == 1280000
    clean.docker("cp", f"{container}:/volume/in", str(tmp_path / "in"))


def test_links_are_resolved_inside(clean: Engine, container: str, tmp_path: Path) -> None:
    """A link of the container leads to the container's own files, never to the host's."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("escape")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/../../tmp"
        tar.addfile(entry)
    clean.docker("cp", "-", f"{container}:/", stdin=archive.getvalue())
    (tmp_path / "file").write_text("inside\n")
    clean.docker("cp", str(tmp_path / "file"), f"{container}:/escape/landed")
    assert not Path("/tmp/landed").exists()
    clean.docker("cp", f"{container}:/tmp/landed", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "inside\n"
    clean.docker("cp", "-L", f"{container}:/escape", str(tmp_path / "followed"))
    assert (tmp_path / "followed" / "landed").read_text() == "inside\n"


def test_what_cannot_be_copied(clean: Engine, container: str, tmp_path: Path) -> None:
    """Missing paths, files in the place of directories and /proc are told of in the real engine's words."""
    done = clean.docker("cp", f"{container}:/missing", str(tmp_path), check=False)
    assert f"Could not find the file /missing in container {container}" in done.stderr
    done = clean.docker("cp", f"{container}:/proc/self", str(tmp_path), check=False)
    assert "Could not find the file /proc/self in container" in done.stderr
    done = clean.docker("cp", f"{container}:/own/", str(tmp_path), check=False)
    assert "not a directory" in done.stderr
    (tmp_path / "directory").mkdir()
    done = clean.docker("cp", str(tmp_path / "directory"), f"{container}:/own", check=False)
    assert done.returncode == 1
    archive = io.BytesIO()
    tarfile.open(fileobj=archive, mode="w").close()
    done = clean.docker("cp", "-", f"{container}:/own", check=False, stdin=archive.getvalue())
    assert done.returncode == 1


def test_read_only_places(clean: Engine, tmp_path: Path) -> None:
    """Nothing is written to a read-only root or volume."""
    (tmp_path / "file").write_text("x")
    clean.docker("create", "--name", "sealed", "--read-only", "-v", "/open", "-v", "shut:/shut:ro", "busybox")
    done = clean.docker("cp", str(tmp_path / "file"), "sealed:/etc/", check=False)
    assert "container rootfs is marked read-only" in done.stderr
    done = clean.docker("cp", str(tmp_path / "file"), "sealed:/shut/", check=False)
    assert "mounted volume is marked read-only" in done.stderr
    clean.docker("cp", str(tmp_path / "file"), "sealed:/open/")
    clean.docker("rm", "-v", "sealed")
    clean.docker("volume", "rm", "shut")


def test_kinds_are_kept(clean: Engine, tmp_path: Path) -> None:
    """A directory of the container is not replaced by a file, nor the other way round."""
    clean.docker("create", "--name", "kinds", "busybox")
    (tmp_path / "etc").write_text("a file")
    done = clean.docker("cp", str(tmp_path / "etc"), "kinds:/", check=False)
    assert 'cannot overwrite directory "etc" with non-directory "/"' in done.stderr
    (tmp_path / "sub" / "passwd").mkdir(parents=True)
    done = clean.docker("cp", str(tmp_path / "sub" / "passwd"), "kinds:/etc/", check=False)
    assert 'cannot overwrite non-directory "passwd" with directory "/etc' in done.stderr


def test_owner(clean: Engine, tmp_path: Path) -> None:
    """Numbers are kept without -a; with it everything belongs to the container's user."""
    clean.docker("run", "-d", "--name", "owner", "-u", "7:8", "busybox", "sleep", "1000")
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 1234, 1235)
    clean.docker("cp", "-a", str(tmp_path / "file"), "owner:/tmp/archived")
    clean.docker("cp", str(tmp_path / "file"), "owner:/tmp/plain")
    shown = clean.out("exec", "owner", "stat", "-c", "%u:%g", "/tmp/archived", "/tmp/plain")
    assert shown.split() == ["7:8", "1234:1235"]


def test_export(clean: Engine, container: str) -> None:
    """The root file system without volumes; an image that is made of it has the same files."""
    exported = raw(clean, "export", container)
    entries = listing(exported)
    assert entries["own"].isreg()
    assert "bin/busybox" in entries
    assert "volume/in" not in entries
    assert not any(name.startswith((".", "/")) for name in entries if name != ".dockerenv")
    clean.docker("import", "-c", "CMD cat /own", "-", "exported", stdin=exported)
    assert clean.out("run", "--rm", "exported") == "own"
    clean.docker("rmi", "exported")


def test_diff(clean: Engine) -> None:
    """Added, changed and deleted files of a container that has run, and nothing that the engine itself made."""
    script = "rm /etc/group; echo x >> /etc/passwd; mkdir -p /new/sub; touch /new/sub/file; rm -r /data; mkdir /data"
    clean.docker("run", "--name", "changed", "busybox", "sh", "-c", script)
    assert sorted(clean.out("diff", "changed").splitlines()) == sorted(
        ["C /etc", "D /etc/group", "C /etc/passwd", "A /new", "A /new/sub", "A /new/sub/file"]
        + ["C /data", "D /data/shipped"]
    )
    clean.docker("run", "--name", "untouched", "busybox", "true")
    assert clean.out("diff", "untouched") == ""


def test_a_stream_of_many_files(clean: Engine) -> None:
    """Twenty thousand entries and a large file go through whole."""
    clean.docker("run", "-d", "--name", "many", "busybox", "sleep", "1000")
    script = "mkdir /many && cd /many && seq 1 20000 | xargs touch && dd if=/dev/zero of=big bs=1M count=64 2>/dev/null"
    clean.docker("exec", "many", "sh", "-c", script)
    entries = listing(raw(clean, "cp", "many:/many/.", "-"))
    assert len(entries) == 20002
    assert entries["./big"].size == 64 << 20


def test_a_container_that_moves_its_files(clean: Engine, tmp_path: Path) -> None:
    """While a container swaps a directory for a link to the host's name of it, nothing outside is written or read."""
    victim = Path("/tmp/gantry-copy-victim")
    victim.mkdir(exist_ok=True)
    try:
        swap = f"mkdir -p /d /real; while :; do rm -rf /d; ln -s {victim} /d; rm -f /d; mkdir /d; done"
        clean.docker("run", "-d", "--name", "hostile", "busybox", "sh", "-c", swap)
        (tmp_path / "file").write_text("x")
        for _ in range(20):
            clean.docker("cp", str(tmp_path / "file"), "hostile:/d/file", check=False)
        assert list(victim.iterdir()) == []
    finally:
        for left in victim.iterdir():
            left.unlink()
        victim.rmdir()
