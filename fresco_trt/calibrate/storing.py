"""Where results go: asked before anything is measured, written whole or not at all."""

from __future__ import annotations

import json
import os
from errno import EISDIR
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import Any


def check_writable(path: Path) -> None:
    """Before any picture is drawn: a minute of work must not end in "no such folder".

    Creates nothing. Raises OutputNotWritable or DiskFull.
    """
    from fresco_trt.backends.base import writing

    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        parents = (parent for parent in path.absolute().parents if os.path.lexists(parent))
        with TemporaryFile(dir=next(parents)):
            pass


def store(document: dict[str, Any], path: Path) -> None:
    """Write a result as JSON beside its final place, then rename it.

    Raises OutputNotWritable or DiskFull; whatever happens, ``path`` is the old file or the new one.
    """
    from fresco_trt.backends.base import writing

    partial = path.with_name(f".{token_hex(8)}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(document, indent=1, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
