"""The files that a loaded bundle still reads, and that nobody has written to them.

Libraries map weights into memory and read them page by page, when they are first needed. Replacing
or deleting a bundle leaves those files as they were for whoever has loaded them. Writing over one
of them does not: the next picture would be drawn with other weights.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from fresco_trt.errors import BundleChanged
from fresco_trt.files.canonical_json import quoted

if TYPE_CHECKING:
    from types import TracebackType

    from fresco_trt.bundle.folder import Bundle

MAPPED = (".bin", ".plan", ".safetensors")
"""Ends of the files that libraries map."""


class FilesInUse:
    """Open files of a bundle, from its loading until it is closed; a context manager."""

    def __init__(self, bundle: Bundle) -> None:
        """To be made where :meth:`~fresco_trt.bundle.folder.Bundle.unchanged` holds."""
        self._scope = ExitStack()
        self._files: dict[str, tuple[int, tuple[int, int]]] = {}
        with ExitStack() as scope:
            for file in bundle.manifest.files:
                if file.path.endswith(MAPPED):
                    number = os.open(bundle.folder / file.path, os.O_RDONLY | os.O_CLOEXEC)
                    scope.callback(os.close, number)
                    self._files[file.path] = number, _state(number)
            self._scope = scope.pop_all()

    def check(self) -> None:
        """Raise BundleChanged if one of them was written to."""
        for path, (number, state) in self._files.items():
            if _state(number) != state:
                raise BundleChanged(
                    f"{quoted(path)} was written to while its bundle was drawn with",
                    expected="a bundle that stays as it is, or is replaced as a whole",
                    fix="build it again, or copy it beside and rename it; then load it anew",
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.clear()
        self._scope.close()


def _state(number: int) -> tuple[int, int]:
    found = os.fstat(number)
    return found.st_size, found.st_mtime_ns
