"""Paths that a caller names: taken by the system, or refused in words.

In front of the data path, under both doors: the arguments of public calls and the options of
commands. What lies at a path is asked by whoever opens it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fresco_trt.errors import DiskFull, FrescoError, InvalidArgument


def check_path(given: str, path: str | os.PathLike[str]) -> None:
    """Raise InvalidArgument, about the argument ``given``, for a path that the system takes
    nowhere: too long, with a zero or half a character in it, or a ring of links; and for one whose
    bytes are not UTF-8, which the libraries that read weights cannot open. Whether something is
    there is not asked.
    """
    try:
        os.fsencode(Path.cwd() / path).decode("utf-8")
        os.lstat(path)
    except ValueError:  # those of Unicode are, too
        why = "it has a zero in it, or is not UTF-8"
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            return  # whoever opens it will say
        why = error.strerror or "it cannot be used"
    else:
        return
    raise InvalidArgument(
        f"{given}: {why}", expected="a path that this system takes", fix="pass another path"
    )


@contextmanager
def paths_refused() -> Iterator[None]:
    """What the system refuses of a path that it names, as :func:`refused_path`."""
    try:
        yield
    except OSError as error:
        typed = refused_path(error)
        if typed is None:
            raise
        raise typed from error


def refused_path(error: OSError) -> FrescoError | None:
    """What the system refused of a path, as an error of the package; None if it names no path."""
    if error.filename is None:
        return None
    given = f"{error.filename} cannot be used: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            given, expected="room for all of it", fix="free some space there, or pass another path"
        )
    return InvalidArgument(
        given,
        expected="a path that this system takes and this user may use",
        fix="pass another path",
    )
