"""``python -m dockerd.dns FD``: the companion process, with the listening control socket as an open descriptor."""

from __future__ import annotations

import signal
import socket
import sys

from dockerd.dns.server import Server


def main(arguments: list[str]) -> int:
    """Serve until it is over."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        print("usage: python -m dockerd.dns FD (it is started by dockerd)", file=sys.stderr)
        return 2
    # It ends by the control socket; a signal for the engine's group or its terminal is not meant for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Server(socket.socket(fileno=int(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
