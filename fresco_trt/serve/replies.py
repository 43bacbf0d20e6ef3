"""Answers in OpenAI's form: the one JSON object, and the server-sent events of a stream."""

from __future__ import annotations

import json
from time import time
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fresco_trt.pipelines.several import Bucket, FrescoPipelines
    from fresco_trt.serve.body import Wanted
    from fresco_trt.serve.drawing import Drawn, Preview
    from fresco_trt.serve.pictures import Encoded


def images_reply(
    wanted: Wanted, drawn: Sequence[Drawn], data: Sequence[dict[str, str]], tokens: int
) -> dict[str, Any]:
    """The answer without a stream. `data` has a `b64_json` or a `url` for each picture; `tokens`
    are those of one picture.
    """
    pictures = [{**each, "seed": of.seed} for each, of in zip(data, drawn, strict=True)]
    return {
        "created": int(time()),
        "data": pictures,
        **_settings(wanted),
        "usage": _usage(wanted, drawn[0].tokens, tokens, len(drawn)),
        **_beside(wanted, drawn),
    }


def partial_event(wanted: Wanted, preview: Preview, picture: Encoded, stages: int) -> bytes:
    """The end of a stage: a picture of the stage's own, smaller size."""
    name = _event_name(wanted, "partial_image")
    event = {
        "type": name,
        "b64_json": picture.b64,
        "partial_image_index": preview.stage - 1,
        "created_at": int(time()),
        **_settings(wanted),
        "stage": preview.stage,
        "stages": stages,
    }
    return event_bytes(name, event)


def completed_event(wanted: Wanted, drawn: Drawn, picture: Encoded, tokens: int) -> bytes:
    """The picture."""
    name = _event_name(wanted, "completed")
    event = {
        "type": name,
        "b64_json": picture.b64,
        "created_at": int(time()),
        **_settings(wanted),
        "usage": _usage(wanted, drawn.tokens, tokens, 1),
        "seed": drawn.seed,
        **_beside(wanted, [drawn]),
    }
    return event_bytes(name, event)


def event_bytes(name: str, value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def models_reply(pipelines: FrescoPipelines, created: int) -> dict[str, Any]:
    """The list of models; each with what is built of it."""
    names = dict.fromkeys(bucket.model for bucket in pipelines.buckets)
    return {
        "object": "list",
        "data": [model_reply(name, pipelines.buckets, created) for name in names],
    }


def model_reply(name: str, buckets: Sequence[Bucket], created: int) -> dict[str, Any]:
    """One model."""
    from fresco_trt.plan.sizes import format_size

    built = [
        {"size": format_size(bucket.size), "preset": bucket.preset}
        for bucket in buckets
        if bucket.model == name
    ]
    owner = f"fresco-trt {__version__}"
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "built": built,
        "edits": any(bucket.edits for bucket in buckets if bucket.model == name),
    }


def _settings(wanted: Wanted) -> dict[str, str]:
    return {
        "background": "opaque",
        "output_format": wanted.format,
        "quality": wanted.quality,
        "size": wanted.size,
    }


def _event_name(wanted: Wanted, what: str) -> str:
    return f"image_{'generation' if wanted.source is None else 'edit'}.{what}"


def _usage(wanted: Wanted, text: int, tokens: int, pictures: int) -> dict[str, Any]:
    """A source has as many tokens as the picture that is made of it."""
    source = 0 if wanted.source is None else tokens
    return {
        "input_tokens": text + source,
        "input_tokens_details": {"text_tokens": text, "image_tokens": source},
        "output_tokens": tokens * pictures,
        "total_tokens": text + source + tokens * pictures,
    }


def _beside(wanted: Wanted, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """What OpenAI's answers have only at times, or not at all."""
    said = list(dict.fromkeys((*wanted.notes, *(line for each in drawn for line in each.warnings))))
    user = {} if wanted.user is None else {"safety_identifier": wanted.user}
    return {
        "model": wanted.bucket.model,
        "inference_seconds": round(sum(each.seconds for each in drawn), 6),
        "warnings": said,
        **user,
    }
