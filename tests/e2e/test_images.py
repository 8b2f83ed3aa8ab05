"""Images: import, list, tag, history, save and load, push and pull through a real registry."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import programs
from support.engine import Daemon, Engine, answers_tcp, free_port, tar_of
from support.machine import MARK


@pytest.fixture(scope="module")
def registry(machine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on 127.0.0.1; yields HOST:PORT."""
    directory = tmp_path_factory.mktemp("registry")
    port = free_port()
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    daemon = Daemon(
        [programs.real("REGISTRY", "docker-registry"), "serve", str(config)],
        directory / "log",
        programs.environment(**{MARK: machine}),
        lambda: answers_tcp(port),
    )
    daemon.start()
    yield f"127.0.0.1:{port}"
    daemon.stop()


def remove_images(docker: Engine, *keep: str) -> None:
    """Remove every image name but busybox."""
    names = docker.out("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    if extra := [name for name in names if name not in {"busybox:latest", *keep} and "<none>" not in name]:
        docker.docker("rmi", "-f", *extra)


def test_list_inspect_history(clean: Engine) -> None:
    """What import made is listed, inspected and has a history."""
    row = json.loads(clean.out("images", "--format", "json"))
    assert (row["Repository"], row["Tag"]) == ("busybox", "latest")
    image = json.loads(clean.out("inspect", "busybox"))[0]
    assert image["Config"]["Cmd"] == ["sh"]
    assert image["Architecture"]
    assert len(image["RootFS"]["Layers"]) == 1
    assert image["Id"].startswith("sha256:")
    assert "Imported from -" in clean.out("history", "--no-trunc", "--format", "{{.Comment}}{{.CreatedBy}}", "busybox")


def test_tag_and_remove(clean: Engine) -> None:
    """A second name of an image goes without the image; the last name takes it along, unless a container needs it."""
    clean.docker("tag", "busybox", "other:v1")
    identifier = clean.out("images", "-q", "--no-trunc", "other:v1")
    assert identifier == clean.out("images", "-q", "--no-trunc", "busybox")
    assert clean.out("rmi", "other:v1") == "Untagged: other:v1"
    clean.docker("create", "--name", "user", "busybox")
    done = clean.docker("rmi", "busybox", check=False)
    assert done.returncode == 1
    assert "conflict: unable to" in done.stderr
    done = clean.docker("rmi", "never-heard-of", check=False)
    assert "No such image: never-heard-of" in done.stderr


def test_save_and_load(clean: Engine, tmp_path: Path) -> None:
    """An image saved, removed and loaded is the same image and runs."""
    clean.docker("tag", "busybox", "saved:1")
    identifier = clean.out("images", "-q", "--no-trunc", "saved:1")
    clean.docker("save", "-o", str(tmp_path / "saved.tar"), "saved:1")
    clean.docker("rmi", "saved:1")
    assert "Loaded image: saved:1" in clean.out("load", "-i", str(tmp_path / "saved.tar"))
    assert clean.out("images", "-q", "--no-trunc", "saved:1") == identifier
    assert clean.out("run", "--rm", "saved:1", "echo", "loaded") == "loaded"
    remove_images(clean)


def test_load_of_rubbish_is_refused(clean: Engine) -> None:
    """Something that is no image archive is an error and leaves nothing."""
    before = clean.out("images", "-aq")
    done = clean.docker("load", stdin=b"this is not a tar" * 100, check=False)
    assert done.returncode == 1
    assert clean.out("images", "-aq") == before


def test_push_and_pull(clean: Engine, registry: str) -> None:
    """A push and a pull go through a real registry; the second of each finds everything there."""
    name = f"{registry}/team/box:v1"
    clean.docker("tag", "busybox", name)
    pushed = clean.out("push", name)
    assert f"The push refers to repository [{registry}/team/box]" in pushed
    digest = pushed.rsplit("digest: ", 1)[1].split()[0]
    assert "Layer already exists" in clean.out("push", name)
    clean.docker("rmi", name)
    pulled = clean.out("pull", name)
    assert f"Digest: {digest}" in pulled
    assert f"Status: Downloaded newer image for {name}" in pulled
    assert f"Status: Image is up to date for {name}" in clean.out("pull", name)
    assert clean.out("run", "--rm", name, "echo", "pulled") == "pulled"
    assert f"{registry}/team/box@{digest}" in clean.out("inspect", "-f", "{{.RepoDigests}}", name)
    clean.docker("rmi", name)
    assert clean.out("run", "--rm", f"{registry}/team/box@{digest}", "echo", "by digest") == "by digest"
    remove_images(clean)


def test_pull_errors(clean: Engine, registry: str) -> None:
    """An unknown tag and an unreachable registry are clear errors with nothing left behind."""
    done = clean.docker("pull", f"{registry}/no/such:thing", check=False)
    assert done.returncode == 1
    assert "not found" in done.stderr
    done = clean.docker("pull", "127.0.0.1:1/x", check=False)
    assert done.returncode == 1
    assert "connection refused" in done.stderr
    done = clean.docker("pull", "127.0.0.1:1/UPPER", check=False)
    assert "repository name" in done.stderr
    assert "must be lowercase" in done.stderr


def test_corrupt_blob_is_refused(clean: Engine, registry: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A layer whose bytes do not match its digest never becomes part of an image."""
    name = f"{registry}/bad/box:v1"
    clean.docker("import", "-", name, stdin=tar_of("unique", os.urandom(5000)))
    clean.docker("push", name)
    clean.docker("rmi", name)
    kinds = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
    request = urllib.request.Request(f"http://{registry}/v2/bad/box/manifests/v1", headers={"Accept": ", ".join(kinds)})
    with urllib.request.urlopen(request) as reply:
        digest = json.load(reply)["layers"][0]["digest"].removeprefix("sha256:")
    [blob] = tmp_path_factory.getbasetemp().glob(f"registry0/data/docker/registry/v2/blobs/sha256/*/{digest}/data")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = clean.docker("pull", name, check=False)
    assert done.returncode == 1
    assert re.search("digest|verif|corrupt|filesystem layer", done.stderr)
    assert clean.out("images", "-q", name) == ""
    blob.write_bytes(whole)
    assert clean.out("pull", "-q", name) == name
    remove_images(clean)
