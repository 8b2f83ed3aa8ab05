"""SQLite as Gantry's daemons use it: WAL, foreign keys, numbered migrations, one writer at a time.

A daemon keeps nothing that it cannot rebuild, so whatever must outlive it is committed here before the
daemon acts on it. Readers never wait for the writer (WAL); writers queue on a lock instead of failing
with SQLITE_BUSY.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["Database", "SchemaTooNew"]


class SchemaTooNew(Exception):
    """The file was written by a newer version, which this one cannot read."""


class Database:
    """One SQLite file, shared by the threads of a process and by other processes.

    ``migrations`` are SQL scripts; number *n* (from 1) brings ``user_version`` from *n-1* to *n*. They are
    only ever appended to. Each runs in one transaction with its version, so a crash leaves either all of it or nothing.

    Raises :class:`SchemaTooNew` when the file has more migrations than are known here.
    """

    def __init__(self, path: str | os.PathLike[str], migrations: Sequence[str]) -> None:
        self._path = os.fspath(path)
        self._local = threading.local()
        self._write_lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._migrate(migrations)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; rows are ``sqlite3.Row``. What it reads is one statement's snapshot."""
        yield self._connection()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside BEGIN IMMEDIATE; commits at the end, rolls back on any exception.

        Raises OSError (ENOSPC) with the file's name when the disk is full.
        """
        connection = self._connection()
        if connection.in_transaction:  # nested write: the outer transaction decides
            yield connection
            return
        with self._write_lock:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except sqlite3.OperationalError as error:
                connection.rollback()
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path) from error
                raise
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        """Close the connections of every thread."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL in WAL mode survives a killed process; only a power cut can lose the last commits, never corrupt.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _migrate(self, migrations: Sequence[str]) -> None:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(migrations):
                raise SchemaTooNew(
                    f"{self._path} has schema version {version}, this program knows {len(migrations)}: "
                    "install the version that wrote it, or a newer one"
                )
            for number, script in enumerate(migrations[version:], start=version + 1):
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def _statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit the surrounding transaction."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip(" \n;"):
        raise ValueError(f"migration ends inside a statement: {statement.strip()[:60]!r}")
