"""The request bodies of `POST /v1/images/generations` and `/edits`, and what they ask for.

Fields are OpenAI's, with `seed` and `guidance` beside them. A field that this server would not read
is not here, and is refused by its name; null stands for a field that was left out.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fresco_trt.errors import FrescoError, UnknownModel, UnknownPreset, UnsupportedSize
from fresco_trt.pipelines.checks import MAX_GUIDANCE, MAX_SEED
from fresco_trt.plan.sizes import format_size, parse_size
from fresco_trt.serve.limits import LONGEST_PROMPT, MOST_IMAGES
from fresco_trt.serve.refusal import Refusal, invalid, refusal_of, replaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL.Image import Image

    from fresco_trt.pipelines.several import Bucket, FrescoPipelines
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.serve.limits import Limits

QUALITIES = {"low": "fast", "medium": "balanced", "high": "quality", "standard": "balanced"} | {
    "hd": "quality"
}
"""OpenAI's words for a quality, and the preset of a bundle that each stands for."""

Format = Literal["png", "jpeg", "webp"]


class Asked(BaseModel):
    """What both paths take."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    prompt: str = Field(max_length=LONGEST_PROMPT, description="What to draw, or to change.")
    model: str | None = Field(None, max_length=256, description="One of GET /v1/models.")
    n: int | None = Field(None, ge=1, le=MOST_IMAGES, description="Pictures: seed, seed + 1, ...")
    size: str | None = Field(None, max_length=32, description="WIDTHxHEIGHT as built, or auto.")
    quality: str | None = Field(
        None,
        max_length=64,
        description="low, medium, high or auto; or the name of a preset that is built.",
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the first picture; random where left out."
    )
    guidance: float | None = Field(None, ge=0, le=MAX_GUIDANCE, description="Guidance scale.")
    background: Literal["opaque", "auto"] | None = Field(None, description="Always opaque.")
    output_format: Format | None = Field(None, description="png where left out.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of a jpeg or webp, 100 where left out."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="In the answer, or under a URL for some minutes."
    )
    stream: bool | None = Field(None, description="Server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Ends of so many stages, as events of a stream."
    )
    user: str | None = Field(None, max_length=512, description="Comes back as it is.")
    safety_identifier: str | None = Field(None, max_length=512, description="As user.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.output_compression is not None and self.output_format in (None, "png"):
            raise ValueError("output_compression: expected with output_format jpeg or webp only")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: expected with stream true only")
        if self.stream and (self.n or 1) > 1:
            raise ValueError("n: expected 1 with stream true; ask for each picture by itself")
        if self.stream and self.response_format == "url":
            raise ValueError("response_format: expected b64_json with stream true")
        if (self.seed or 0) + (self.n or 1) - 1 > MAX_SEED:
            raise ValueError(f"seed: expected seed + n - 1 to be at most {MAX_SEED}")
        return self


class Generation(Asked):
    """A picture, or several, from a prompt."""


class Edit(Asked):
    """A picture, or several, from another picture and a prompt that says what to change of it."""


class ErrorObject(BaseModel):
    """What was wrong: in words, of which kind, which field of the body, and a name for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A request after all that was left open in it is decided. Another bundle may have taken the
    place of that of `plan` before it is answered.
    """

    bucket: Bucket
    plan: StagePlan
    prompt: str
    seeds: tuple[int, ...]
    guidance: float | None
    previews: int
    format: Format
    compression: int
    by_url: bool
    quality: str
    user: str | None
    source: Image | None = None
    """What is edited, RGB of the built size."""
    mask: Image | None = None
    """White where it may change, mode "L" of the built size."""
    notes: tuple[str, ...] = ()
    """What was changed of either."""

    @property
    def stages(self) -> int:
        """That a picture goes through."""
        return len(self.plan.paths[0])

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        return self.plan.stages[-1].grid.tokens

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return format_size(self.bucket.size)


def edit_of(fields: dict[str, str]) -> Edit:
    """The text of a form as an edit; an empty field but the prompt is one that was left out, as
    OpenAI's client sends them. Raises Refusal.
    """
    given = {name: text for name, text in fields.items() if text or name == "prompt"}
    try:
        return Edit.model_validate_strings(given)
    except ValidationError as error:
        raise malformed(error.errors(), (*Edit.model_fields, "image", "mask")) from None


def malformed(found: Sequence[Any], known: Iterable[str]) -> Refusal:
    """The first thing that is wrong with a body, as pydantic tells it; of fields that are not
    known, all.
    """
    unknown = [str(each["loc"][-1]) for each in found if each["type"] == "extra_forbidden"]
    if unknown:
        shown = ", ".join(repr(name[:60]) for name in unknown[:10])
        message = f"unknown: {shown}; expected only {', '.join(known)}"
        return invalid(message, unknown[0][:60], code="unknown_field")
    message = str(found[0]["msg"]).removeprefix("Value error, ")
    inside = [str(part) for part in found[0]["loc"]]
    named = inside[0] if inside else message.partition(":")[0]
    param = named if named in known else None
    if param and not message.startswith(f"{param}:"):
        message = f"{param}: {message}"
    return invalid(message, param)


def wanted_of(asked: Asked, pipelines: FrescoPipelines, limits: Limits) -> Wanted:
    """What a body asks for. Raises Refusal for what is not built here or over a limit."""
    count = asked.n or 1
    if count > limits.images:
        raise invalid(f"n is {count}; expected at most {limits.images} here", "n")
    if len(asked.prompt) > limits.prompt:
        raise invalid(
            f"the prompt has {len(asked.prompt)} characters; expected at most {limits.prompt} here",
            "prompt",
        )
    first = secrets.randbits(32) if asked.seed is None else asked.seed
    bucket = _bucket(asked, pipelines)
    try:
        plan = pipelines.bundle(bucket).plan
    except KeyError:
        raise replaced() from None
    return Wanted(
        bucket=bucket,
        plan=plan,
        prompt=asked.prompt,
        seeds=tuple(range(first, first + count)),
        guidance=asked.guidance,
        previews=asked.partial_images or 0,
        format=asked.output_format or "png",
        compression=100 if asked.output_compression is None else asked.output_compression,
        by_url=asked.response_format == "url",
        quality=asked.quality or "auto",
        user=asked.safety_identifier or asked.user,
    )


def check_kind(edits: bool, pipelines: FrescoPipelines, model: str | None = None) -> None:
    """Raise Refusal where nothing that is built edits, or draws without a picture; or where the
    model does not that was named.
    """
    names = list(dict.fromkeys(each.model for each in pipelines.buckets if each.edits == edits))
    others = {each.model for each in pipelines.buckets} - {*names}
    if names and model not in others:
        return
    path = "generations" if edits else "edits"
    does = "draws from a prompt alone" if edits else "edits a picture"
    given = f"the model {model}" if names else "every model here"
    raise invalid(
        f"{given} {does}; expected {', '.join(names) or f'POST /v1/images/{path}'}",
        "model" if names else None,
        code="no_edits" if edits else "no_generations",
    )


def _bucket(asked: Asked, pipelines: FrescoPipelines) -> Bucket:
    edits = isinstance(asked, Edit)
    check_kind(edits, pipelines, asked.model)
    quality = None if asked.quality in (None, "auto") else asked.quality
    size = None if asked.size in (None, "auto") else asked.size
    try:
        found = None if size is None else parse_size(size)
        preset = None if quality is None else QUALITIES.get(quality, quality)
        return pipelines.find(model=asked.model, size=found, preset=preset, edits=edits)
    except UnknownModel as error:
        raise Refusal(404, "model_not_found", _said(error), param="model") from None
    except UnsupportedSize as error:
        raise invalid(_said(error), "size") from None
    except UnknownPreset as error:
        raise invalid(f"quality {quality!r}: {_said(error)}", "quality") from None
    except FrescoError as error:
        raise refusal_of(error) from None


def _said(error: FrescoError) -> str:
    """Without the remedy, which is one for those who run the server."""
    return f"{error.given}; expected {error.expected}"
