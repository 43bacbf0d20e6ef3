"""Edits that a model is calibrated with: source pictures, and what is to be changed of each.

Beside the prompts of :mod:`fresco_trt.lower.calibrate.basis`, for models that edit. A folder holds
the pictures and a ``metadata.jsonl``, the layout of an ImageFolder of Hugging Face's datasets: one
JSON object a line, of which ``file_name`` and ``prompt`` are read.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fresco_trt.errors import CalibrationError
from fresco_trt.files.picture_file import SourceWarning, read_source
from fresco_trt.lower.calibrate.basis import default_path

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.plan.sizes import Size

METADATA = "metadata.jsonl"

LEAST = 2
"""Fewest edits: what one gives is the range of one picture."""

_LINE = '{"file_name": "cat.png", "prompt": "make the cat black"}'


def default_edits(model: str) -> Path:
    """Where the edits of a model are, found as its prompts are."""
    return default_path(model, "edits")


def read_edits(folder: Path, size: Size) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """The prompts of a folder, in order, and for each its source, RGB of ``size``.

    Warns (SourceWarning), once for all, where pictures are resized, have transparency or several
    frames. Raises CalibrationError for fewer than :data:`LEAST` edits, a line that is none and a
    picture that is not there, and PictureInvalid for one that cannot be read.
    """
    edits = [_edit(folder, number, line) for number, line in _lines(folder)]
    if len(edits) < LEAST:
        raise _no_edits(f"{folder / METADATA} with {len(edits)} edits")
    pictures: list[Image] = []
    notes: list[str] = []
    for _, path in edits:
        picture, found = read_source(path, size)
        pictures.append(picture)
        notes.extend(found)
    if notes:
        more = f"; {len(notes) - 1} more changes of pictures" if len(notes) > 1 else ""
        warnings.warn(f"{notes[0]}{more}", SourceWarning, stacklevel=2)
    return tuple(prompt for prompt, _ in edits), tuple(pictures)


def _lines(folder: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, numbered from 1."""
    try:
        text = (folder / METADATA).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        alone = folder.with_name(f"{folder.name.removesuffix('-edits')}-prompts.txt")
        aside = f": {alone} has prompts alone" if alone.is_file() else ""
        raise _no_edits(f"no {folder / METADATA}{aside}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _no_edits(f"{folder / METADATA} cannot be read: {error}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _edit(folder: Path, number: int, line: str) -> tuple[str, Path]:
    """Prompt and picture of one line."""
    where = f"line {number} of {folder / METADATA}"
    try:
        fields = json.loads(line)
        name, prompt = fields["file_name"], fields["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_edits(f"{where} without a file_name and a prompt") from error
    if not (isinstance(name, str) and isinstance(prompt, str) and name and prompt.strip()):
        raise _no_edits(f"{where} whose file_name or prompt is no text, or empty")
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\0" in name:
        raise _no_edits(f"{where} with the picture {name}, which is not in the folder")
    if not (folder / inside).is_file():
        raise _no_edits(f"{where} with the picture {name}, which is not there")
    return prompt.strip(), folder / inside


def _no_edits(given: str) -> CalibrationError:
    return CalibrationError(
        given,
        expected=f"a folder of pictures with a {METADATA} of {LEAST} lines or more like {_LINE}",
        fix="put edits like those that will be asked for there; 'fresco-trt calibrate' also takes "
        "such a folder with --pictures",
    )
