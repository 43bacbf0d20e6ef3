"""The folder of what is kept from one build or compilation to the next, for this user."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "FRESCO_TRT_CACHE"


def cache_folder(given: Path | None = None) -> Path:
    """``given``, else what FRESCO_TRT_CACHE names, else ``fresco-trt`` in the user's cache folder.

    Absolute. The last is by the XDG specification, which says to ignore a relative XDG_CACHE_HOME.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if given is None and named:
        given = Path(named)
    if given is None:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        given = (base if base.is_absolute() else Path.home() / ".cache") / "fresco-trt"
    return given.expanduser().absolute()
