"""TLS towards a registry: authorities, our own certificates, and a host that is not there."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd.errors import InvalidArgument, NotFound, Unavailable
from containerd.transfer.cancellation import Cancellation
from containerd.transfer.registry import RegistryClient, hosts_for
from gantry.oci.reference import parse

OPENSSL = shutil.which("openssl")


def _openssl(*arguments: str) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ``a`` and ``b``, and from each a certificate for 127.0.0.1: ``a-leaf`` and ``b-leaf``."""
    if OPENSSL is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("keys")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("a", "b"):
        ca, leaf = folder / name, folder / f"{name}-leaf"
        _openssl("req", "-x509", *curve, "-subj", f"/CN={name}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        _openssl(
            "req", "-x509", *curve, "-subj", f"/CN={name}-leaf", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
            "-keyout", f"{leaf}.key", "-out", f"{leaf}.pem",
        )  # fmt: skip
    return folder


class _Nothing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        return


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        return


@pytest.fixture
def registry(keys: Path) -> Iterator[str]:
    """A registry without images, with ``a-leaf``, for those with a certificate of ``b``."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(f"{keys}/a-leaf.pem", f"{keys}/a-leaf.key")
    settings.load_verify_locations(f"{keys}/b.pem")
    settings.verify_mode = ssl.CERT_REQUIRED
    server = _Server(("127.0.0.1", 0), _Nothing)
    server.socket = settings.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def _resolve(registry: str, tmp_path: Path, text: str) -> None:
    folder = tmp_path / registry
    folder.mkdir(exist_ok=True)
    (folder / "hosts.toml").write_text(f'server = "https://{registry}"\n{text}')
    with RegistryClient(parse(f"{registry}/a:1"), hosts_for(registry, str(tmp_path)), Cancellation()) as client:
        client.resolve()


def test_several_authorities_and_certificates(registry: str, keys: Path, tmp_path: Path) -> None:
    """One of the authorities has signed the host's certificate, the host takes one of ours: it has not the image."""
    client = f'client = [["{keys}/a-leaf.pem", "{keys}/a-leaf.key"], ["{keys}/b-leaf.pem", "{keys}/b-leaf.key"]]'
    with pytest.raises(NotFound):
        _resolve(registry, tmp_path, f'ca = ["{keys}/b.pem", "{keys}/a.pem"]\n{client}\n')


def test_a_host_that_nobody_vouches_for(registry: str, keys: Path, tmp_path: Path) -> None:
    """The wrong authority, and none; with skip_verify it is taken as it is."""
    client = f'client = [["{keys}/b-leaf.pem", "{keys}/b-leaf.key"]]\n'
    for authorities in (f'ca = "{keys}/b.pem"\n', "skip_verify = false\n"):
        with pytest.raises(Unavailable, match="certificate verify failed"):
            _resolve(registry, tmp_path, authorities + client)
    with pytest.raises(NotFound):
        _resolve(registry, tmp_path, "skip_verify = true\n" + client)


def test_a_host_that_does_not_take_our_certificate(registry: str, keys: Path, tmp_path: Path) -> None:
    """No certificate, or one of somebody else's."""
    for client in ("", f'client = [["{keys}/a-leaf.pem", "{keys}/a-leaf.key"]]\n'):
        with pytest.raises(Unavailable, match="failed to do request"):
            _resolve(registry, tmp_path, f'ca = "{keys}/a.pem"\n{client}')


def test_files_that_cannot_be_used_are_named(keys: Path, tmp_path: Path) -> None:
    """An authority that is no certificate, a key that is not there, a key of another certificate."""
    (tmp_path / "junk.pem").write_text("junk")
    for text, name in (
        (f'ca = "{tmp_path}/junk.pem"', "junk.pem"),
        (f'client = [["{keys}/a-leaf.pem", "{keys}/none.key"]]', "none.key"),
        (f'client = [["{keys}/a-leaf.pem", "{keys}/b-leaf.key"]]', "b-leaf.key"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            _resolve("127.0.0.1:1", tmp_path, text)


def test_a_host_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """Nobody listens: no second attempt, and so no pause."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="Connection refused"):
            _resolve(address, tmp_path, "")
    assert time.monotonic() - begun < 0.2


def test_a_daemon_that_asks_no_registry_carries_no_client() -> None:
    """The HTTP library is loaded with the first connection."""
    code = "import sys, containerd.daemon, containerd.storage; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
