"""The folder of what is kept from one build or compilation to the next, for this user."""

from __future__ import annotations

import os
from pathlib import Path

from fresco_trt.errors import OutputNotWritable

CACHE_VARIABLE = "FRESCO_TRT_CACHE"


def cache_folder(given: Path | None = None) -> Path:
    """``given``, else what FRESCO_TRT_CACHE names, else ``fresco-trt`` in the user's cache folder.

    Absolute. The last is by the XDG specification, which says to ignore a relative XDG_CACHE_HOME.
    Raises OutputNotWritable where it lies in the home of a user who has none.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if given is None and named:
        given = Path(named)
    try:
        if given is None:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            given = (base if base.is_absolute() else Path.home() / ".cache") / "fresco-trt"
        return given.expanduser().absolute()
    except RuntimeError as error:  # as pathlib says that there is no home
        raise OutputNotWritable(
            "the cache folder would lie in the home of a user who has none",
            expected="a folder to keep files in",
            fix=f"set {CACHE_VARIABLE} to a folder that this user may write to",
        ) from error
