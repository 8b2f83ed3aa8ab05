"""The daemon's processes under gunicorn: a light master with the sockets, and workers with an engine each."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from dockerd import log
from dockerd.config import Config, ConfigError

__all__ = ["Application"]

THREADS = 32
"""Requests served at a time by one worker. What waits for long is not served by a thread but by the reactor."""

FIXED = ("hosts", "data_root", "exec_root", "containerd", "pidfile", "group", "storage_driver", "bip", "bridge")
"""Settings that a running daemon cannot change."""

BOOT_FAILED = 3
"""The exit status by which a worker tells gunicorn's master that starting another one makes no sense."""

_log = logging.getLogger(__name__)


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's own messages, in the daemon's form."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(log.Formatter())


class Application(BaseApplication):  # type: ignore[misc]
    """Runs the daemon on sockets that are open already, until it is told to stop."""

    def __init__(
        self,
        config: Config,
        listeners: Sequence[int],
        containerd_address: str,
        on_exit: Callable[[], None],
        reread: Callable[[], Config],
    ) -> None:
        self._config = config
        self._reread = reread
        self._listeners = listeners
        self._containerd_address = containerd_address
        self._on_exit = on_exit
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn up. Nothing of it comes from files, arguments or environment of its own."""
        settings: dict[str, Any] = {
            "bind": [f"fd://{number}" for number in self._listeners],
            "workers": 1,
            "worker_class": "dockerd.server.worker.Worker",
            "threads": THREADS,
            "worker_connections": 8192,
            "keepalive": 60,
            "timeout": 120,
            "graceful_timeout": self._config.shutdown_timeout,
            # A registry's credentials and long filters go in headers and query strings.
            "limit_request_line": 0,
            "limit_request_field_size": 65536,
            "control_socket_disable": True,
            "accesslog": None,
            "loglevel": "warning",
            "logger_class": _Logger,
            "proc_name": "dockerd",
            "post_worker_init": _freeze,
            "worker_exit": _close_engine,
            "on_exit": lambda _arbiter: self._on_exit(),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def reload(self) -> None:
        """SIGHUP: read the configuration again. A new worker takes over with it; what this process has stays."""
        try:
            new = self._reread()
        except ConfigError as error:
            _log.error("the configuration is kept as it was: %s", error)
        else:
            kept = {name: getattr(self._config, name) for name in FIXED}
            changed = [name for name, value in kept.items() if getattr(new, name) != value]
            if changed:
                _log.warning("these settings change with the next start only: %s", ", ".join(changed))
            self._config = replace(new, **kept)
            log.set_up(self._config.log_level, self._config.debug)
        super().reload()

    def run(self) -> None:
        """Serve until told to stop. What the master has loaded is its workers' too, as long as nobody writes to it."""
        gc.collect()
        gc.freeze()
        super().run()

    def load(self) -> Callable[..., Iterable[bytes]]:
        """Build the engine. Runs in a worker: the master has loaded neither Flask nor gRPC."""
        from dockerd.api import create_app
        from dockerd.engine import build

        # At a reload the worker before this one lets go of it when it has answered its last request.
        path = os.path.join(self._config.exec_root, "worker.lock")
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            engine = build(self._config, self._containerd_address)
            engine.start()
            app = create_app(engine)
        except Exception as error:
            _log.error("failed to start daemon: %s", error, exc_info=self._config.debug)
            raise SystemExit(BOOT_FAILED) from error
        _log.info("Daemon has completed initialization")
        self.engine = engine
        return app


def _freeze(_worker: object) -> None:
    # What is loaded now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()


def _close_engine(_arbiter: object, worker: Any) -> None:
    engine = getattr(worker.app, "engine", None)
    if engine is not None:  # only in the worker's own process
        engine.close()
