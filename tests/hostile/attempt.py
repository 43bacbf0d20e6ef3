"""One attempt on a changed bundle: it is inspected, opened, loaded and drawn from, and judged.

In the fuzzer this runs in a process of its own, under limits; in a test, in the test's process. A
judgement is one of :data:`OUTCOMES`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fresco_trt.errors import FrescoError

REFUSED, EQUAL, OTHER = "refused", "drawn equal", "drawn from other values"
WRONG, TRACEBACK, ESCAPE = "wrong accept", "traceback", "escape"
HANG, MEMORY, DIED, TEXT = "hang", "memory", "died", "unprintable"
OUTCOMES = (REFUSED, EQUAL, OTHER, WRONG, TRACEBACK, ESCAPE, HANG, MEMORY, DIED, TEXT)
GOOD = (REFUSED, EQUAL, OTHER)
"""What may become of a hostile bundle; anything else is a fault."""

LONGEST = 1_000
"""Characters of a whole message, the path of the bundle and the way out included."""

_NO_MEMORY = re.compile(r"allocate memory|bad_alloc|Cannot allocate|MemoryError|OutOfDeviceMemory")
_OF_MODULES = (".py", ".pyc", ".so", ".json", ".txt", ".pyi", "METADATA")


@dataclass(slots=True)
class Judged:
    """What became of an attempt: the outcome, an error's class or none, and a text about it."""

    outcome: str
    error: str = ""
    text: str = ""
    picture: str = ""
    opened: list[str] = field(default_factory=list)


def attempt(folder: Path) -> Judged:
    """Inspect the bundle at ``folder``, load it and draw one picture."""
    try:
        said = _inspected(folder)
        if said:
            return said
        return Judged(EQUAL, picture=_drawn(folder))
    except FrescoError as error:
        return _refused(error)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        return _raised(error)


def compared(picture: str, honest: str, matters: bool) -> str:
    """The outcome of a picture beside that of the honest bundle."""
    if picture == honest:
        return EQUAL
    return WRONG if matters or picture.startswith("flat") else OTHER


def _inspected(folder: Path) -> Judged | None:
    """What the command line says of it must be for people's eyes; None where nothing is wrong."""
    from fresco_trt.cli.main import main

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(["inspect", str(folder)])
    text = out.getvalue()
    if code not in (0, 1, 2):
        return Judged(TRACEBACK, "inspect", f"exit code {code}")
    return None if _printable(text.replace("\n", "")) else Judged(TEXT, "inspect", ascii(text))


def _drawn(folder: Path) -> str:
    """Digest of the picture of one prompt and seed."""
    from fresco_trt import FrescoPipeline

    with warnings.catch_warnings(record=True), FrescoPipeline.from_bundle(folder) as pipe:
        image = pipe("a bell", seed=7).images[0]
    low, high = image.convert("L").getextrema()
    kind = "flat " if low == high else ""  # black, or of one colour: no picture
    return kind + hashlib.sha256(image.tobytes()).hexdigest()[:16]


def _refused(error: FrescoError) -> Judged:
    text, kind = str(error), type(error).__name__
    if _NO_MEMORY.search(f"{kind} {text}"):
        return Judged(MEMORY, kind, text[:600])
    if not _printable(text) or len(text) > LONGEST:
        return Judged(TEXT, kind, f"{len(text)} characters: {ascii(text)[:600]}")
    return Judged(REFUSED, kind, text[:300])


def _raised(error: BaseException) -> Judged:
    said = "".join(traceback.format_exception(error))
    outcome = MEMORY if _NO_MEMORY.search(said) else TRACEBACK
    where = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    ours = [each for each in where if "fresco_trt" in each]
    return Judged(
        outcome, type(error).__name__, f"{str(error)[:300]} at {' < '.join(ours[::-1][:3])}"
    )


def _printable(text: str) -> bool:
    return text.isprintable()


# --- what it touches --------------------------------------------------------------------------


class Watch:
    """Every path that Python code opens, every program and library that it starts, once installed.

    An audit hook stays for the life of its process. What libraries open without Python's knowledge
    is seen by :mod:`tests.hostile.fuzz`, in the folder that bundles point at.
    """

    def __init__(self, place: Path, known: frozenset[str]) -> None:
        self.opened: list[str] = []
        self.escapes: list[str] = []
        self._place, self._known = f"{place}/", known
        self._inside = f"{place}/bundle"
        self._busy = False

    def install(self) -> None:
        """Begin to watch."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._note(event, arguments)
        finally:
            self._busy = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"):
            self.escapes.append(f"{event} {ascii(arguments)[:200]}")
        elif event in ("socket.connect", "socket.getaddrinfo", "ctypes.dlopen"):
            self._path(event, arguments[-1] if event == "ctypes.dlopen" else arguments[0])
        elif event == "exec":
            code = getattr(arguments[0], "co_filename", "")
            if str(code).startswith(self._place):
                self.escapes.append(f"ran {code}")
        elif event == "open":
            self._path(event, arguments[0])

    def _path(self, event: str, path: object) -> None:
        if isinstance(path, int) or path is None:
            return
        name = str(path)
        if isinstance(path, str | bytes):
            name = os.path.normpath(Path.cwd() / os.fsdecode(path))  # links are not followed
        said = f"{event} {name}"
        if event == "open" and (name.startswith(f"{self._inside}/") or name == self._inside):
            return
        self.opened.append(said)
        if said not in self._known and not _of_a_module(name):
            self.escapes.append(said)


def _of_a_module(name: str) -> bool:
    roots = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))
    return name.startswith(roots) and name.endswith(_OF_MODULES)
