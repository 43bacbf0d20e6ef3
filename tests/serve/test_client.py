"""OpenAI's own client against real engines: what it draws, streams and fetches."""

from __future__ import annotations

import io
import runpy
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from openai import NotFoundError, OpenAI
from PIL import Image

from fresco_trt.bundle import open_bundle
from fresco_trt.pipelines.several import FrescoPipelines
from tests.serve.conftest import Running, serving

ROOT = Path(__file__).parents[2]
PROMPT = "a red apple on a plain blue background"


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(given: Image.Image | str) -> Any:
    return np.asarray(picture(b64decode(given)) if isinstance(given, str) else given)


@pytest.fixture(scope="module")
def client(real: Running) -> OpenAI:
    return real.client()


@pytest.fixture(scope="module")
def expected(real: Running) -> Any:
    """What the pipeline itself draws with seed 7."""
    (bucket,) = real.pipelines.buckets
    return pixels(real.pipelines[bucket](PROMPT, seed=7).images[0])


def test_a_picture_is_the_pipelines_own(client: OpenAI, expected: Any) -> None:
    reply = client.images.generate(
        prompt=PROMPT, model="flux-tiny", size="64x64", user="someone", extra_body={"seed": 7}
    )
    assert reply.data is not None
    assert reply.usage is not None
    assert (pixels(reply.data[0].b64_json or "") == expected).all()
    assert (reply.size, reply.output_format, reply.background) == ("64x64", "png", "opaque")
    assert reply.safety_identifier == "someone"
    assert reply.usage.output_tokens == 4 * 4 * 4
    assert 0 < reply.usage.input_tokens < 20
    assert reply.usage.total_tokens == reply.usage.input_tokens + 64


def test_a_stream_shows_each_stage_and_then_the_picture(client: OpenAI, expected: Any) -> None:
    events = list(
        client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 7})
    )
    first, second, last = events
    assert first.type == second.type == "image_generation.partial_image"
    assert (first.partial_image_index, second.partial_image_index) == (0, 1)
    assert [pixels(each.b64_json).shape for each in events] == [
        (16, 16, 3),
        (32, 32, 3),
        (64, 64, 3),
    ]
    assert last.type == "image_generation.completed"
    assert (pixels(last.b64_json) == expected).all()
    assert last.usage.total_tokens > 64
    for each in events:
        assert (each.size, each.quality, each.output_format) == ("64x64", "auto", "png")
        assert each.background == "opaque"
        assert each.created_at > 1_700_000_000


def test_several_pictures_come_one_after_the_other_by_url(client: OpenAI, expected: Any) -> None:
    reply = client.images.generate(
        prompt=PROMPT,
        n=2,
        response_format="url",
        output_format="webp",
        output_compression=100,
        extra_body={"seed": 6},
    )
    assert reply.data is not None
    files = []
    for each in reply.data:
        with urlopen(each.url or "") as answer:
            assert answer.headers["content-type"] == "image/webp"
            files.append(picture(answer.read()))
    assert [each.format for each in files] == ["WEBP", "WEBP"]
    difference = [np.abs(pixels(each).astype(int) - expected).mean() for each in files]
    assert difference[1] < 5 < difference[0]


def test_the_example_saves_two_partial_pictures_and_the_picture(
    real: Running, tmp_path: Path, expected: Any
) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "openai_client.py"))
    example["main"](str(tmp_path), real.url)
    saved = {path.name: picture(path.read_bytes()) for path in tmp_path.iterdir()}
    sizes = {name: each.size for name, each in saved.items()}
    assert sizes == {
        "partial1.png": (16, 16),
        "partial2.png": (32, 32),
        "picture.png": (64, 64),
    }
    assert (pixels(saved["picture.png"]) == expected).all()


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("flux-tiny", "model")
    assert client.models.retrieve("flux-tiny") == model
    with pytest.raises(NotFoundError, match="no such model"):
        client.models.retrieve("flux")


def test_a_bundle_that_is_deleted_under_a_server_is_still_drawn_with(
    tmp_path: Path, demo_bundle: Path, expected: Any
) -> None:
    folder = shutil.copytree(demo_bundle, tmp_path / "bundle")
    with serving(FrescoPipelines([open_bundle(folder)])) as running:
        shutil.rmtree(folder)
        reply = running.client().images.generate(prompt=PROMPT, extra_body={"seed": 7})
    assert reply.data is not None
    assert (pixels(reply.data[0].b64_json or "") == expected).all()
