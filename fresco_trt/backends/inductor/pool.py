"""Pieces compiled side by side, each in a process, as many as there are cores and memory for.

A helper is started as a program of its own and not by ``multiprocessing``, which runs a caller's
script anew in each. It imports torch once and compiles one piece after another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt import errors
from fresco_trt.backends.inductor.attention import DEFAULT, using
from fresco_trt.backends.inductor.build import compile_layer, weights_of
from fresco_trt.backends.inductor.log import kept
from fresco_trt.backends.inductor.probe import ending
from fresco_trt.backends.inductor.worker import packed, state
from fresco_trt.errors import BuildError, FrescoError
from fresco_trt.files.atomic_file import writing
from fresco_trt.files.share import free_memory, usable_cores

if TYPE_CHECKING:
    from torch.nn import Module

    from fresco_trt.plan.signature import GraphSignature

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from fresco_trt.backends.inductor.worker import main
main()
"""

# Measured on a CPU: 0.53 GB of the process and as much of the compiler that it waits for. On a GPU
# a context is half a gigabyte, and the widest block's weights twice another.
_HOST_BYTES = {"cpu": 1_500_000_000, "cuda": 3_000_000_000}
_DEVICE_BYTES = 2_000_000_000

_LONGEST = 400
"""Characters of a process's last words that are passed on."""

Done: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """One layer to compile for the shapes of ``signature``, with a kind of ``attention``, to the
    file ``path``.
    """

    layer: Module
    signature: GraphSignature
    path: Path
    attention: str = DEFAULT

    @property
    def name(self) -> str:
        return self.path.stem


def compile_pieces(pieces: Sequence[Piece], device: str, threads: int | None, done: Done) -> None:
    """Compile every piece to its own file, side by side where there is room; ``done`` is told each
    one's name, from any thread. ``threads`` bounds the cores that are used (None: those there are).

    Whatever happens, a file is there complete or not at all, and no process is left. Pieces that
    only this process knows, because its own script defines them, are compiled in it. Raises as
    :func:`compile_layer`, BuildError for a process that died.
    """
    helpers = room(len(pieces), device, threads)
    told = {} if helpers < 2 else {piece: _told(piece) for piece in pieces}
    sent = {piece: text for piece, text in told.items() if text is not None}
    if len(sent) > 1:
        side_by_side(sent, device, min(helpers, len(sent)), threads, done)
    for piece in pieces:
        if len(sent) < 2 or piece not in sent:
            with using(piece.attention):
                compile_layer(piece.layer, piece.signature, piece.path, device, threads)
            done(piece.name)


def room(pieces: int, device: str, threads: int | None) -> int:
    """How many processes to compile so many pieces in; one means this one."""
    bounds = [pieces, usable_cores() if threads is None else threads]
    memory = free_memory()
    if memory is not None:
        bounds.append(memory // _HOST_BYTES[device])
    if device == "cuda":
        import torch

        bounds.append(torch.cuda.mem_get_info()[0] // _DEVICE_BYTES)
    return max(1, min(bounds))


def side_by_side(
    tasks: dict[Piece, str], device: str, helpers: int, threads: int | None, done: Done
) -> None:
    """Compile the pieces, each with the text that tells it, in ``helpers`` processes."""
    folder = next(iter(tasks)).path.parent
    share = max(1, (threads or usable_cores()) // helpers)
    # Those of most weights take longest.
    left = deque(sorted(tasks, key=lambda piece: -len(weights_of(piece.layer))))
    common = {"device": device, "threads": share, "state": state()}
    with (
        writing(folder),
        tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work,
        _helpers(helpers, Path(work), share) as running,
        ThreadPoolExecutor(helpers) as waiting,
    ):
        work_on = partial(_work, left=left, tasks=tasks, common=common, done=done)
        futures = [waiting.submit(work_on, helper) for helper in running]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # on an error or an interrupt the others have nothing more to do
            left.clear()
            if not all(each.done() and each.exception() is None for each in futures):
                for helper in running:
                    helper.kill()
        _raise_first(futures)


def _raise_first(futures: Sequence[Any]) -> None:
    """What went wrong first: those that were ended for it say so too, and later."""
    found = [error for each in futures if (error := each.exception()) is not None]
    found.sort(key=lambda error: isinstance(error, _Ended))
    if found:
        raise found[0]


def _work(
    helper: _Helper,
    *,
    left: deque[Piece],
    tasks: dict[Piece, str],
    common: dict[str, Any],
    done: Done,
) -> None:
    """One process's share: the next piece until none is left."""
    while left:
        try:
            piece = left.popleft()
        except IndexError:  # another took the last one
            return
        finished = helper.folder / piece.path.name
        task = {"piece": tasks[piece], "path": str(finished), "attention": piece.attention}
        helper.ask(piece.name, {**common, **task})
        finished.replace(piece.path)
        done(piece.name)


def _told(piece: Piece) -> str | None:
    """The text that tells a process of the piece; None where no other could know its classes."""
    kinds = {type(module).__module__ for module in piece.layer.modules()}
    if "__main__" in kinds:
        return None
    try:
        return packed(piece.layer, piece.signature)
    except Exception:  # a class may refuse in any way: a function of its own, an open file
        return None


# --- processes --------------------------------------------------------------------------------


class _Ended(BuildError):
    """The process ended before it answered."""


class _Helper:
    """One process, and the folder that it writes to."""

    def __init__(self, folder: Path, threads: int) -> None:
        folder.mkdir()
        self.folder, self._said, self._killed = folder, folder / "said.txt", False
        settings = {"TMPDIR": str(folder), "OMP_NUM_THREADS": str(threads)}
        # -P: what lies in the current folder is not taken for a module, unless this one does so.
        command = [sys.executable, "-P", "-c", _CHILD, json.dumps([*map(str, sys.path)])]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **settings},
                start_new_session=True,  # to be ended with the compilers that it starts
            )

    def ask(self, name: str, task: dict[str, Any]) -> None:
        """Have it compile one piece. Raises what it raised, BuildError where it died."""
        question, answers = self._process.stdin, self._process.stdout
        if question is None or answers is None:
            raise ValueError("a process with no pipes")
        try:
            question.write(json.dumps(task) + "\n")
            question.flush()
            line = answers.readline()
        except OSError:  # it is gone
            line = ""
        if not line:
            raise self._death(name)
        answer = json.loads(line)
        if answer:
            raise _error(name, answer)

    def _death(self, name: str) -> _Ended:
        status = self._process.wait()
        said = self._said.read_text(encoding="utf-8", errors="replace")
        error = _Ended(
            f"the process that compiled {name} {ending(status, said)}",
            expected="a process that compiles and loads a block, and memory for it",
            fix="close other programs, or build on fewer cores (taskset); or pass --backend eager",
        )
        if not self._killed:
            error.fix += f"; {kept(name, said.splitlines(), error)}"
        return error

    def kill(self) -> None:
        """End it at once, with the compilers that it started."""
        self._killed = True
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not written any more
                    continue
        self._process.wait()


@contextmanager
def _helpers(count: int, work: Path, threads: int) -> Iterator[list[_Helper]]:
    started: list[_Helper] = []
    try:
        for number in range(count):
            started.append(_Helper(work / str(number), threads))
        yield started
    finally:
        for helper in started:
            helper.close()


def _error(name: str, answer: dict[str, Any]) -> FrescoError:
    """What a process raised, here."""
    kind = getattr(errors, str(answer["error"]), None)
    if isinstance(kind, type) and issubclass(kind, FrescoError):
        return kind(answer["given"], expected=answer["expected"], fix=answer["fix"])
    return BuildError(
        f"the process that compiled {name} failed: {answer['given'][:_LONGEST]}",
        expected="a block that can be compiled in a process of its own",
        fix="report this model and the version of torch, or pass --backend eager",
    )
