"""Pictures on a page: drawn by the bundle, or given; small, and written anew.

What is embedded is never a file's own bytes: a picture is decoded within bounds and encoded again.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.errors import ReportError
from fresco_trt.report.html import Html, join, tag
from fresco_trt.report.reading import read_bytes, refused

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.pipelines.image import FrescoPipeline

WHAT = "--picture, a PNG, JPEG or WebP file"
MOST_BYTES = 64 * 1024 * 1024
MOST_PIXELS = 64_000_000
MOST = 24
"""Pictures that are given, and prompts that are drawn."""
SIDE = 384
"""Pixels of the longer side, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as it is embedded, and what stands below it."""

    source: Html
    size: tuple[int, int]
    caption: str

    @classmethod
    def of(cls, image: Image, caption: str) -> Picture:
        """One that is not larger than :data:`SIDE`."""
        from PIL.Image import Resampling

        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
        return cls(source=_embedded(small), size=small.size, caption=caption)


def given_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Pictures from files, under their names. Raises ReportError."""
    check_count(len(paths), "--picture")
    return [Picture.of(_opened(path), path.name) for path in paths]


def drawn_pictures(pipe: FrescoPipeline, prompts: Sequence[str], seed: int) -> Iterator[Picture]:
    """For each prompt the clean estimate at each stage's end and the finished picture.

    Of a model that edits, edits of an example. Raises as the pipeline does.
    """
    from fresco_trt.pipelines.edit import example_source

    source = example_source(pipe.bundle)
    for prompt in prompts:
        stages: list[tuple[int, Image]] = []
        result = pipe(
            prompt,
            image=source,
            seed=seed,
            on_stage=lambda *told, kept=stages: kept.append(told),
        )
        for stage, image in stages:
            yield Picture.of(image, f"{prompt}; seed {seed}, after stage {stage}")
        yield Picture.of(result.images[0], f"{prompt}; seed {seed}, finished")


def check_count(count: int, option: str) -> None:
    """Raise ReportError for more than :data:`MOST`."""
    if count > MOST:
        raise ReportError(
            f"{count} times {option}", expected=f"at most {MOST}", fix="make several reports"
        )


def strip(pictures: Sequence[Picture]) -> Html:
    """Pictures side by side."""
    return tag("div", *map(_figure, pictures), class_="strip")


def _figure(picture: Picture) -> Html:
    width, height = picture.size
    image = tag("img", src=picture.source, width=width, height=height, alt=picture.caption)
    return tag("figure", join((image, tag("figcaption", picture.caption))))


def _opened(path: Path) -> Image:
    from PIL import Image

    data = read_bytes(path, WHAT, MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are checked here
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            image.load()
    except Exception as error:  # decoders raise what they like
        raise refused(path, WHAT, str(error) or type(error).__name__) from error
    return image


def _embedded(image: Image) -> Html:
    """Few pixels without loss, many as a photograph."""
    kind = "PNG" if image.width * image.height <= 160 * 160 else "JPEG"
    settings = {"quality": 90} if kind == "JPEG" else {"optimize": True}
    with io.BytesIO() as file:
        image.save(file, format=kind, **settings)
        code = base64.b64encode(file.getvalue()).decode("ascii")
    return Html(f"data:image/{kind.lower()};base64,{code}")
