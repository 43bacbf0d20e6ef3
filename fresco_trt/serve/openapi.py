"""What the interface says of itself: every answer's status and body, and the form of an edit.

Answers are written by `replies`; these are their shapes, and a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from fresco_trt.serve.body import Edit, ErrorReply, Format, Generation
from fresco_trt.serve.guard import EDITS

if TYPE_CHECKING:
    from fastapi import FastAPI

_Responses = dict[int | str, dict[str, Any]]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Status(_Reply):
    """Of the process, or of its engines."""

    status: Literal["ok", "ready", "loading", "failed", "closed"]


class Built(_Reply):
    """Pictures that are drawn of a model."""

    size: str
    preset: str | None


class Model(_Reply):
    """A model, and what is built of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    built: list[Built]
    edits: bool


class Models(_Reply):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class InputTokens(_Reply):
    """Of the prompt, and of the source of an edit."""

    text_tokens: int
    image_tokens: int


class Usage(_Reply):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    total_tokens: int


class Picture(_Reply):
    """In base64, or where to fetch it."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Images(_Reply):
    """Pictures of one request."""

    created: int
    data: list[Picture]
    background: Literal["opaque"]
    output_format: Format
    quality: str
    size: str
    usage: Usage
    model: str
    inference_seconds: float
    warnings: list[str]
    safety_identifier: str | None = None


_RETRY = {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}}
_ERRORS: dict[int, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    401: {"description": "No API key, or another one."},
    404: {"description": "No such model."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many requests wait.", **_RETRY},
    500: {"description": "The server failed."},
    503: {"description": "Not ready, or no memory for the body.", **_RETRY},
    504: {"description": "Not done by the deadline."},
}

STATUS: _Responses = {503: {"model": Status, "description": "Not yet, or no more."}}


def errors(*statuses: int) -> _Responses:
    """The answers of a path that are errors."""
    return {status: {"model": ErrorReply, **_ERRORS[status]} for status in statuses}


def images(kind: str) -> _Responses:
    """The answers of a path that draws; `kind` is that of its events."""
    names = [f"image_{kind}.{each}" for each in ("partial_image", "completed")]
    event = {
        "type": "object",
        "description": "Of each event; its data are JSON, as OpenAI's clients read them.",
        "properties": {
            "event": {"type": "string", "enum": [*names, "error"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
    }
    drawn = {
        "model": Images,
        "description": "Pictures, or with stream true the events of one.",
        "content": {"text/event-stream": {"schema": event}},
    }
    return {200: drawn, **errors(*_ERRORS)}


_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_PICTURES = {
    "image": {**_FILE, "description": "The picture to edit, once; as image[] too."},
    "mask": {**_FILE, "description": "Transparent, or white, where the picture may change."},
}


def describe(app: FastAPI) -> None:
    """Have the application tell what it answers, and not what FastAPI supposes: no path has a 422
    of its form, and the bounds of a seed are whole numbers.
    """
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = described()
            for path in found["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = found["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            schemas["Generation"] = Generation.model_json_schema()
            found["paths"][EDITS]["post"]["requestBody"] = _edit_form()
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _edit_form() -> dict[str, Any]:
    """The body of an edit: the fields of a generation as text, and a picture. An empty field is one
    that was left out, where JSON has null.
    """
    fields = Edit.model_json_schema()["properties"]
    schema = {
        "type": "object",
        "title": "Edit",
        "properties": {name: _text_field(each) for name, each in fields.items()} | _PICTURES,
        "required": ["prompt", "image"],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _text_field(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without null."""
    kept = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    for each in schema.get("anyOf", ()):
        if each != {"type": "null"}:
            kept |= each
    return kept
