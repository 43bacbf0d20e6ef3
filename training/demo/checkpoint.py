"""The one folder that a run of the demo's training goes on from: under 55 MB, whole at any time.

    state.safetensors   what is in training now, and the time that is used (in its metadata)
    vae/                the codec, once it is trained; it is never trained again
    held-out.jsonl      a line for each checkpoint: the loss on scenes that are not trained on

While the transformer learns, the state is its weights in bfloat16, their average and the first
moments in 8 bits. While the student learns, it is the teacher in bfloat16, as it will ship, and the
factors with all of theirs; the teacher's own moments are gone, so that training which goes on from
there with more minutes begins with the averaged weights and new moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ContentInvalid, IncompatibleOptions
from fresco_trt.files.atomic_file import replacing, writing

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

STATE_NAME, VAE_NAME, CURVE_NAME = "state.safetensors", "vae", "held-out.jsonl"

_COUNTED = ("seconds", "steps", "shown")


@dataclass(slots=True, kw_only=True)
class Kept:
    """What a checkpoint holds: the stage that it is of, the run's seed, what was counted by stages
    and sizes, and arrays.
    """

    stage: str
    seed: int
    counted: dict[str, dict[str, float]]
    arrays: Mapping[str, torch.Tensor] = field(repr=False)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made; a killed process keeps nobody out.

    Raises IncompatibleOptions where one is at work.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # whose folders have no locks
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IncompatibleOptions(
                f"--out {folder}, where another run is training",
                expected="one run in a folder at a time",
                fix="wait for it or end it, or pass another --out",
            ) from error
        yield
    finally:
        os.close(descriptor)


def store(folder: Path, kept: Kept) -> None:
    """Write a checkpoint in place of the last one. Raises as `replacing`."""
    from safetensors.torch import save_file

    told = {"stage": kept.stage, "seed": kept.seed, "counted": kept.counted}
    arrays = {name: value.cpu().contiguous() for name, value in kept.arrays.items()}
    with replacing(folder / STATE_NAME) as partial:
        save_file(arrays, partial, {"demo": json.dumps(told)})


def read(folder: Path, seed: int) -> Kept | None:
    """The checkpoint of a folder, or None where there is none yet.

    Removes what a killed writer left. Raises ContentInvalid for a file that is none, and
    IncompatibleOptions for a run of another seed.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(".*.partial"):
            partial.unlink()
    path = folder / STATE_NAME
    if not path.exists():
        return None
    kept = _read(path)
    if kept.seed != seed:
        raise IncompatibleOptions(
            f"--seed {seed}, and {path} was begun with {kept.seed}",
            expected="the seed of the run that goes on",
            fix=f"pass --seed {kept.seed}, or another --out",
        )
    return kept


def _read(path: Path) -> Kept:
    from safetensors import SafetensorError, safe_open

    untyped: Any = safe_open
    try:
        with untyped(path, framework="pt") as opened:
            told = json.loads((opened.metadata() or {})["demo"])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Kept(
            stage=str(told["stage"]),
            seed=int(told["seed"]),
            counted={name: dict(told["counted"][name]) for name in _COUNTED},
            arrays=arrays,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ContentInvalid(
            f"{path} is no checkpoint: {error}",
            expected="what a run of this training has written",
            fix="remove it to begin anew, or pass another --out",
        ) from error


def add_line(folder: Path, line: Mapping[str, Any]) -> None:
    """One more line of the held-out curve."""
    with writing(folder), (folder / CURVE_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
