from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from gantry.linux import unix


def test_a_socket_path_of_any_length_is_bound_and_connected(tmp_path: Path) -> None:
    """Far beyond the 108 bytes of sun_path, with the permissions asked for."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    path = str(directory / "attach.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        unix.bind_path(server, path)
        server.listen()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            unix.connect_path(client, path)
            accepted, _ = server.accept()
            with accepted:
                unix.send_packet(client, b"hello")
                assert unix.receive_packet(accepted) == (b"hello", [])


def test_a_path_in_use_and_a_missing_one_are_named(tmp_path: Path) -> None:
    """Errors carry the path that the caller gave, not the short one used underneath."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        unix.bind_path(first, path)
        with pytest.raises(OSError, match="in use") as caught:
            unix.bind_path(second, path)
        assert caught.value.filename == path
        with pytest.raises(FileNotFoundError) as missing:
            unix.connect_path(second, str(tmp_path / "none"))
        assert missing.value.filename == str(tmp_path / "none")


def test_descriptors_travel_with_a_packet_and_are_close_on_exec() -> None:
    """The receiver gets a working duplicate that no exec leaks."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with left, right:
        unix.send_packet(left, b"x", [writer])
        os.close(writer)
        data, descriptors = unix.receive_packet(right)
        assert data == b"x"
        assert len(descriptors) == 1
        assert not os.get_inheritable(descriptors[0])
        os.write(descriptors[0], b"through")
        os.close(descriptors[0])
        assert os.read(reader, 16) == b"through"
    os.close(reader)


def test_a_packet_longer_than_the_buffer_is_an_error_and_closes_what_it_brought() -> None:
    """Nothing is cut silently, no descriptor leaks."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with left, right:
        unix.send_packet(left, b"x" * 100, [writer])
        os.close(writer)
        with pytest.raises(OSError, match="longer than the buffer"):
            unix.receive_packet(right, size=10)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_end_of_the_stream_is_empty() -> None:
    """A closed peer gives empty data and no descriptors."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.close()
    with right:
        assert unix.receive_packet(right) == (b"", [])
