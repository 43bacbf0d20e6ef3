"""What pictures are drawn of: a file of prompts, or for a model that edits a folder of edits.

Read and checked before anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate.basis import default_prompts
from fresco_trt.lower.calibrate.edits import default_edits, read_edits

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

MOST = 1000
"""Prompts of a file. A tune draws some dozens."""
MOST_BYTES = 4_000_000


def asked_of(
    facts: ModelFacts, size: Size, given: Path | None, count: int
) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """The prompts of ``count`` pictures, and for a model that edits the source of each: those there
    are from the first on, again from the first where they are fewer.

    Raises CalibrationError for a file of none or too many, and for one that is no text; and what
    :func:`~fresco_trt.lower.calibrate.edits.read_edits` does.
    """
    if facts.references:
        prompts, pictures = read_edits(given or default_edits(facts.name), size)
    else:
        prompts, pictures = read_prompts(given or default_prompts(facts.name)), ()
    places = [number % len(prompts) for number in range(count)]
    sources = tuple(pictures[place] for place in places) if pictures else ()
    return tuple(prompts[place] for place in places), sources


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not blank. Raises CalibrationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"--prompts {path} cannot be read: {error}") from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise _refused(f"--prompts {path}, a file without a prompt")
    if len(data) > MOST_BYTES or len(prompts) > MOST:
        more = f"{len(prompts)} prompts" if len(prompts) > MOST else f"over {MOST_BYTES} bytes"
        raise _refused(f"--prompts {path} with {more}")
    return prompts


def _refused(given: str) -> CalibrationError:
    return CalibrationError(
        given,
        expected=f"a text file in UTF-8 with one prompt a line, 1 to {MOST} of them",
        fix="write some dozen prompts like those that will be asked for into a file, and pass "
        "--prompts with it",
    )
