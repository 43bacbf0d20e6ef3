"""A SQLite export of Nsight Systems, opened to be read: what it is, and which tables it has.

First of the folder's files. An export may come from anywhere, and may be larger than memory: it is
opened read-only, nothing in it is run, and rows come one by one. Sorting and joining use files of
SQLite's own, which vanish with the connection. Tables are made only when there is data for them,
and columns move between versions, so both are asked for by name before they are used.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import DiskFull, ExportInvalid, FrescoError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"SQLite format 3\x00"
EXPECTED = "a SQLite file of 'nsys export --type=sqlite'"
HOW = "export the report again: nsys export --type=sqlite --output=FILE.sqlite FILE.nsys-rep"

PATIENCE = 2.0
"""Seconds to wait for who writes the file."""

LONGEST_VALUE = 1_000_000
"""Bytes of a text or of a statement; a longer one ends the reading."""

CACHE_KIB = 32_000
"""Of pages in memory, for the file and for what is sorted."""

MOST_TABLES = 2_000
"""An export has a few hundred."""

_NO_LOCKS = ("SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_PROTOCOL", "SQLITE_NOLFS")
_HEADER_BYTES = 100
_SETTINGS = (
    "trusted_schema=OFF",
    "cell_size_check=ON",
    f"cache_size=-{CACHE_KIB}",
    "temp_store=FILE",
    "mmap_size=0",
)

KNOWN = (
    "NVTX_EVENTS",
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
)
"""Tables of which an export has one at least, if anything was recorded."""

STRINGS = "StringIds"
RUNTIMES = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
"""Tables of calls that launch work."""


@dataclass(frozen=True)
class Export:
    """An open export. ``tables`` are its own tables' columns, by name; views are none of them."""

    connection: sqlite3.Connection
    tables: dict[str, frozenset[str]]

    def has(self, table: str, *columns: str) -> bool:
        """Whether there is that table, with those columns."""
        return table in self.tables and self.tables[table].issuperset(columns)

    def first(self, table: str, *columns: str) -> str | None:
        """The first of the columns that the table has."""
        found = self.tables.get(table, frozenset())
        return next((column for column in columns if column in found), None)

    def rows(self, statement: str, given: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a statement, one by one."""
        return self.connection.execute(statement, given)

    def text(self, identity: object) -> str | None:
        """The text of :data:`STRINGS` with that number."""
        if not self.has(STRINGS, "id", "value"):
            return None
        found = self.rows(f"SELECT value FROM {STRINGS} WHERE id = ? LIMIT 1", (identity,))
        return next((str(value) for (value,) in found), None)

    @cached_property
    def about(self) -> dict[str, str]:
        """What the export says of itself: program and version, where there is a table for it."""
        if not self.has("META_DATA_EXPORT", "name", "value"):
            return {}
        wanted = ("EXPORT_PRODUCT_NAME", "EXPORT_PRODUCT_VERSION", "EXPORT_SCHEMA_VERSION")
        marks = ", ".join("?" * len(wanted))
        found = self.rows(
            f"SELECT name, substr(value, 1, 100) FROM META_DATA_EXPORT WHERE name IN ({marks})",
            wanted,
        )
        return {
            str(name).removeprefix("EXPORT_").lower(): str(value) for name, value in found if value
        }


@contextmanager
def opened(path: Path) -> Iterator[Export]:
    """An export, to be read within the scope.

    Raises ExportInvalid for what is no file, no database, truncated, locked, damaged or of another
    tool, then or within the scope, and DiskFull where there is no room to sort it.
    """
    _check_file(path)
    with _told(path):
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, timeout=PATIENCE, uri=True)) as connection:
            _prepare(connection)
            export = Export(connection, _tables_of(connection))
            if not any(table in export.tables for table in KNOWN):
                raise _invalid(path, "is a database without a table of Nsight Systems")
            yield export


def _prepare(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.text_factory = lambda value: value.decode("utf-8", "replace")
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    # Also lets the interpreter notice an interrupt while a statement sorts.
    connection.set_progress_handler(lambda: 0, 100_000)


def _tables_of(connection: sqlite3.Connection) -> dict[str, frozenset[str]]:
    """Columns by table. Not of views or virtual tables: these run what the file says."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%'"
        f" LIMIT {MOST_TABLES}"
    ).fetchall()
    return {
        str(name): frozenset(
            str(column)
            for (column,) in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
        )
        for (name,) in names
    }


def _check_file(path: Path) -> None:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise _invalid(path, "is no file")
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise _invalid(path, f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL byte in the name
        raise _invalid(path, f"cannot be read ({error})") from error
    if not header.startswith(MAGIC):
        raise _invalid(path, "is no SQLite database")
    if len(header) < _HEADER_BYTES or state.st_size < _size_of(header):
        raise _invalid(path, "is truncated")


def _size_of(header: bytes) -> int:
    """Bytes of the file by its own header, 0 where that does not say."""
    page = int.from_bytes(header[16:18], "big")
    changes, pages, valid_for = header[24:28], header[28:32], header[92:96]
    if changes != valid_for:
        return 0
    return (65536 if page == 1 else page) * int.from_bytes(pages, "big")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as errors of the package, and an interrupt as one."""
    try:
        yield
    except FrescoError:
        raise
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_INTERRUPT":
            raise KeyboardInterrupt from error
        if name == "SQLITE_FULL":
            raise DiskFull(
                f"the disk filled up while {path} was sorted",
                expected="room for its tables, sorted, in the folder for temporary files",
                fix="set TMPDIR (or SQLITE_TMPDIR) to a folder on a disk with room",
            ) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise ExportInvalid(
                f"{path} is locked: another program writes it",
                expected="an export that is complete",
                fix="wait until it is, or copy the file and read the copy",
            ) from error
        if name in _NO_LOCKS:
            raise ExportInvalid(
                f"{path} is on a file system without locks ({error})",
                expected="one that SQLite can lock a file on",
                fix="copy the file to a disk of this machine",
            ) from error
        raise _invalid(path, f"is damaged or truncated ({error})") from error
    except UnicodeDecodeError as error:  # an error of SQLite's that quotes what is no text
        raise _invalid(path, "is damaged: its schema is no text") from error


def _invalid(path: Path, what: str) -> ExportInvalid:
    return ExportInvalid(f"{path} {what}", expected=EXPECTED, fix=HOW)
