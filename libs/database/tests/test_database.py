from __future__ import annotations

import errno
import sqlite3
import threading
from pathlib import Path

import pytest

from gantry.database import Database, SchemaTooNew

FIRST = "CREATE TABLE thing (name TEXT PRIMARY KEY);"
SECOND = "ALTER TABLE thing ADD COLUMN size INTEGER; CREATE TABLE part (thing TEXT REFERENCES thing (name));"


def test_migrations_are_applied_once_and_in_order(tmp_path: Path) -> None:
    """A later version adds its migrations to what an earlier one wrote."""
    with Database(tmp_path / "db", [FIRST]).write() as connection:
        connection.execute("INSERT INTO thing VALUES ('a')")
    with Database(tmp_path / "db", [FIRST, SECOND]).read() as connection:
        assert [tuple(row) for row in connection.execute("SELECT name, size FROM thing")] == [("a", None)]


def test_a_failing_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    """A migration is all or nothing."""
    Database(tmp_path / "db", [FIRST])
    with pytest.raises(sqlite3.OperationalError):
        Database(tmp_path / "db", [FIRST, "CREATE TABLE extra (x); CREATE TABLE thing (y);"])
    with Database(tmp_path / "db", [FIRST]).read() as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'extra'").fetchone()[0] == 0


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An old program does not touch a newer file."""
    Database(tmp_path / "db", [FIRST, SECOND])
    with pytest.raises(SchemaTooNew, match="schema version 2"):
        Database(tmp_path / "db", [FIRST])


def test_an_exception_rolls_back(tmp_path: Path) -> None:
    """Nothing of a failed write is kept, also when writes are nested."""
    database = Database(tmp_path / "db", [FIRST])
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute("INSERT INTO thing VALUES ('a')")
        with database.write() as inner:
            inner.execute("INSERT INTO thing VALUES ('b')")
        raise RuntimeError
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM thing").fetchone()[0] == 0


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Nothing of the write is kept, and the error is the one that a file would give."""
    database = Database(tmp_path / "db", [FIRST])
    with database.read() as connection:
        connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(OSError, match="No space left on device") as full, database.write() as connection:
        connection.execute("INSERT INTO thing VALUES (hex(zeroblob(100000)))")
    assert full.value.errno == errno.ENOSPC
    with database.write() as connection:
        connection.execute("INSERT INTO thing VALUES ('a')")


def test_foreign_keys_hold(tmp_path: Path) -> None:
    """A reference to nothing is refused."""
    database = Database(tmp_path / "db", [FIRST, SECOND])
    with pytest.raises(sqlite3.IntegrityError), database.write() as connection:
        connection.execute("INSERT INTO part VALUES ('missing')")


def test_writers_queue(tmp_path: Path) -> None:
    """Writers from many threads wait for each other rather than fail."""
    database = Database(tmp_path / "db", [FIRST])

    def insert(name: str) -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO thing VALUES (?)", (name,))

    threads = [threading.Thread(target=insert, args=(f"n{i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM thing").fetchone()[0] == 20
    database.close()
