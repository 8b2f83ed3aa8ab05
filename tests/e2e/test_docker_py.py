"""docker-py from PyPI as a client."""

from __future__ import annotations

from collections.abc import Iterator

import docker as docker_py
import pytest
from docker.errors import APIError, ImageNotFound, NotFound
from support.engine import Engine


@pytest.fixture
def client(clean: Engine) -> Iterator[docker_py.DockerClient]:
    """A client of the module's engine."""
    made = docker_py.DockerClient(base_url=f"unix://{clean.socket}", timeout=30)
    yield made
    made.close()


def test_run_and_errors(client: docker_py.DockerClient) -> None:
    """run returns the output; a failing command and unknown things raise the library's own errors."""
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    with pytest.raises(docker_py.errors.ContainerError):
        client.containers.run("busybox", ["sh", "-c", "exit 3"], remove=True)
    with pytest.raises(NotFound):
        client.containers.get("no-such-container")
    with pytest.raises(ImageNotFound):
        client.images.get("no-such-image")


def test_detached_exec_logs_wait(client: docker_py.DockerClient) -> None:
    """A detached container: exec_run, demultiplexed output, logs, wait, remove."""
    container = client.containers.run("busybox", ["sh", "-c", "echo up; sleep 1000"], detach=True, name="py")
    result = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    assert result.exit_code == 4
    assert result.output == (b"out\n", b"err\n")
    assert next(container.logs(stream=True, follow=True)).strip() == b"up"
    container.kill()
    assert container.wait()["StatusCode"] == 137
    container.reload()
    assert container.status == "exited"
    container.remove()


def test_attach_socket(client: docker_py.DockerClient) -> None:
    """Bytes written to an attach socket come back from cat."""
    container = client.containers.create("busybox", ["cat"], stdin_open=True, name="cat")
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    raw = getattr(stream, "_sock", stream)
    raw.sendall(b"ping\n")
    header = raw.recv(8)
    assert header[0] == 1
    assert raw.recv(int.from_bytes(header[4:8], "big")) == b"ping\n"
    stream.close()
    container.remove(force=True)


def test_images_volumes_networks(client: docker_py.DockerClient) -> None:
    """Listing and tagging images, volumes, the three networks."""
    image = client.images.get("busybox")
    assert image.tag("renamed", "v2")
    assert {"busybox:latest", "renamed:v2"} <= set(client.images.get("busybox").tags)
    client.images.remove("renamed:v2")
    volume = client.volumes.create("py-volume", labels={"a": "b"})
    output = client.containers.run(
        "busybox", ["ls", "-d", "/v"], remove=True, volumes={"py-volume": {"bind": "/v", "mode": "rw"}}
    )
    assert output == b"/v\n"
    assert [v.name for v in client.volumes.list(filters={"label": "a=b"})] == ["py-volume"]
    volume.remove()
    assert {n.name for n in client.networks.list()} == {"bridge", "host", "none"}


def test_malformed_requests(client: docker_py.DockerClient) -> None:
    """Every error is a JSON message with the API's status."""
    api = client.api
    reply = api.post(
        f"{api.base_url}/v1.41/containers/create", data=b"{not json", headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["message"]
    reply = api.get(f"{api.base_url}/v1.41/no/such/page")
    assert reply.status_code == 404
    assert reply.json() == {"message": "page not found"}
    reply = api.get(f"{api.base_url}/v9.99/info")
    assert reply.status_code == 400
    assert "client version 9.99 is too new" in reply.json()["message"]
    with pytest.raises(APIError) as refused:
        api.create_container("busybox", name="not/valid")
    assert refused.value.status_code == 400
    assert "Invalid container name (not/valid)" in refused.value.explanation
