"""What a request may say and what it gets: fields, sizes, presets, errors, pages, numbers."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, AuthenticationError
from PIL import Image

from fresco_trt.errors import KeyNotUsable
from fresco_trt.pipelines.checks import MAX_SEED
from fresco_trt.serve.body import Generation
from fresco_trt.serve.guard import read_keys
from fresco_trt.serve.page import page, policy
from fresco_trt.serve.pictures import Encoded, KeptPictures
from tests.serve.conftest import EDITS, GENERATIONS, Running, serving
from tests.serve.scripted import ScriptedPipelines

KEY = b"a-key-of-enough-characters"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """A server for tests that leave nothing behind."""
    with serving(ScriptedPipelines(64, 128), images=4, prompt=100) as running:
        yield running


# --- what is asked for ------------------------------------------------------------------------


def test_what_is_left_out_or_null_is_the_servers_choice(shared: Running) -> None:
    nothing = dict.fromkeys(set(Generation.model_fields) - {"prompt"})
    bare, nulls = shared.draw(), shared.draw(**nothing)
    for answer in (bare, nulls):
        assert answer.status == 200
        assert answer.json["size"] == "64x64"
        assert answer.json["quality"] == "auto"
        (picture,) = answer.json["data"]
        assert Image.open(io.BytesIO(b64decode(picture["b64_json"]))).size == (64, 64)
        assert 0 <= picture["seed"] < 2**32
    assert bare.json["data"][0]["seed"] != nulls.json["data"][0]["seed"]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"size": "128x128"}, "128x128"),
        ({"size": "auto"}, "64x64"),
        ({"quality": "turbo"}, "64x64"),
        ({"quality": "auto", "model": "flux-tiny"}, "64x64"),
    ],
)
def test_a_bundle_is_looked_up(shared: Running, fields: dict[str, Any], size: str) -> None:
    assert shared.draw(**fields).json["size"] == size


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_comes_in_the_format_asked_for(shared: Running, form: str) -> None:
    quality = {} if form == "png" else {"output_compression": 0}
    answer = shared.draw(output_format=form, **quality)
    data = b64decode(answer.json["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(data)).format == form.upper()
    assert answer.json["output_format"] == form


def test_seeds_count_up_from_the_first(scripted: Running) -> None:
    answer = scripted.draw(n=3, seed=MAX_SEED - 2, guidance=3.5)
    assert [each["seed"] for each in answer.json["data"]] == [MAX_SEED - 2, MAX_SEED - 1, MAX_SEED]
    assert [seed for _, seed in scripted.pipelines.asked] == [MAX_SEED - 2, MAX_SEED - 1, MAX_SEED]


def test_what_a_model_cannot_read_of_a_prompt_is_said(shared: Running) -> None:
    assert shared.draw("odd words", n=2).json["warnings"] == [
        "the model knows no such words: 'odd'"
    ]


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
def test_a_stream_has_as_many_previews_as_were_asked_for(shared: Running, asked: int) -> None:
    events = stream(shared, partial_images=asked)
    kinds = [name for name, _ in events]
    partial = ["image_generation.partial_image"] * min(asked, 2)
    assert kinds == [*partial, "image_generation.completed"]
    assert [event["type"] for _, event in events] == kinds


def stream(running: Running, prompt: str = "a bell", **fields: Any) -> list[tuple[str, Any]]:
    """The events of a stream."""
    answer = running.draw(prompt, stream=True, **fields)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    blocks = [block.split("\n") for block in answer.body.decode().split("\n\n") if block]
    assert all(len(block) == 2 for block in blocks)
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"steps": 4, "style": "vivid"},
            "steps",
            "unknown: 'steps', 'style'; expected only",
        ),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": "a" * 101}, "prompt", "at most 100 here"),
        ({"prompt": "half of \ud800"}, "prompt", "unicode"),
        ({"n": 5}, "n", "at most 4 here"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": "1"}, "n", "integer"),
        ({"n": True}, "n", "integer"),
        ({"size": "96x96"}, "size", "64x64, 128x128"),
        ({"size": "large"}, "size", "WIDTHxHEIGHT"),
        ({"size": "64x64x2"}, "size", "64x64, 128x128"),
        ({"quality": "high"}, "quality", "turbo"),
        ({"quality": "xhigh"}, "quality", "turbo"),
        ({"seed": -1}, "seed", "greater"),
        ({"seed": 2**64}, "seed", "less"),
        ({"seed": MAX_SEED, "n": 2}, "seed", "seed + n - 1"),
        ({"guidance": -0.5}, "guidance", "greater"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"output_compression": 50}, "output_compression", "jpeg or webp"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "100"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"stream": True, "partial_images": 4}, "partial_images", "3"),
        ({"stream": True, "n": 2}, "n", "each picture"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"response_format": "file"}, "response_format", "b64_json"),
        ({"user": "u" * 513}, "user", "512"),
    ],
)
def test_a_wrong_field_is_named(
    shared: Running, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = shared.draw(**fields)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert said in answer.error["message"]
    assert len(answer.error["message"]) <= 1000


def test_another_model_is_not_found(shared: Running) -> None:
    answer = shared.draw(model="dall-e-3")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "flux-tiny" in answer.error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"[" * 50_000,
        b'{"prompt": "a", "guidance": NaN}',
        b'{"prompt": "a", "guidance": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 9000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff\xfe"}',
        b"\x00" * 100,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_request_is_refused(shared: Running, body: bytes) -> None:
    answer = shared.ask(GENERATIONS, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "", "x" * 300])
def test_a_body_of_another_type_is_refused(shared: Running, kind: str) -> None:
    answer = shared.ask(GENERATIONS, b'{"prompt": "a"}', content_type=kind)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\nbroken", b'--x\r\ncontent-disposition: form-data; name="image"\r\n\r\n']
)
def test_an_edit_is_refused_whatever_it_says(shared: Running, body: bytes) -> None:
    kind = "multipart/form-data; boundary=x"
    answer = shared.ask("/v1/images/edits", body, content_type=kind)
    assert (answer.status, answer.error["code"]) == (400, "no_edits")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/images/variations", 404),
        ("/docs", 404),
        ("/pictures/unknown", 404),
        ("/pictures/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/models/..%2f..%2fetc%2fpasswd", 404),
        (GENERATIONS, 405),
    ],
)
def test_other_paths_are_refused_in_the_same_form(shared: Running, path: str, status: int) -> None:
    answer = shared.ask(path)
    assert answer.status == status
    assert answer.error["message"]


# --- what fails -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "status", "code", "said"),
    [
        ("fail", 500, "engine_failed", "it stopped"),
        ("crash", 500, "internal_error", "its log says why"),
        ("long", 400, "prompt_too_long", "at most 32"),
    ],
)
def test_a_failure_has_a_status_of_its_own_streamed_or_not(
    shared: Running, prompt: str, status: int, code: str, said: str
) -> None:
    for fields in ({}, {"stream": True, "partial_images": 2}):
        answer = shared.draw(prompt, **fields)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert said in answer.error["message"]
        assert "secret" not in answer.body.decode()
    assert shared.draw().status == 200


def test_a_failure_within_a_stream_is_an_event_that_the_client_raises(shared: Running) -> None:
    *partial, (name, last) = stream(shared, "halfway", partial_images=2)
    assert [event["stage"] for _, event in partial] == [1, 2]
    assert (name, last["error"]["code"]) == ("error", "engine_failed")
    with pytest.raises(APIError, match="it stopped"):
        list(shared.client().images.generate(prompt="halfway", stream=True, partial_images=1))


# --- keys -------------------------------------------------------------------------------------


def test_a_key_is_asked_for_where_something_is_drawn() -> None:
    with serving(ScriptedPipelines(), keys=(b"another-key-that-is-known", KEY)) as running:
        for given_key in ("", "Bearer", f"Basic {KEY.decode()}", "Bearer wrong", "Bearer \xff"):
            answer = running.ask(GENERATIONS, {"prompt": "a"}, authorization=given_key)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        with pytest.raises(AuthenticationError):
            running.client().models.list()
        assert running.client(api_key=KEY.decode()).images.generate(prompt="a bell").data
        for path in ("/", "/health", "/ready", "/metrics"):
            assert running.ask(path).status == 200
        assert running.count("requests_refused_total", reason="invalid_api_key") == 6
        assert len(running.pipelines.asked) == 1


def test_keys_are_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\n" + KEY + b"  \r\n\n0123456789abcdef\n")
    assert read_keys(path) == (KEY, b"0123456789abcdef")
    assert read_keys(None) == ()
    for wrong in (b"", b"\n \n", b"short\n", KEY + b"\nshort"):
        path.write_bytes(wrong)
        with pytest.raises(KeyNotUsable, match="16 characters"):
            read_keys(path)
    with pytest.raises(KeyNotUsable, match="cannot be read"):
        read_keys(tmp_path)


# --- pictures by URL --------------------------------------------------------------------------


def test_pictures_are_kept_for_a_time_and_up_to_a_size() -> None:
    now = [0.0]
    kept = KeptPictures(most_bytes=250, seconds=10, clock=lambda: now[0])
    pictures = [Encoded(data=bytes(100), media_type=f"image/{n}") for n in range(4)]
    names = [kept.keep(each) for each in pictures[:2]]
    assert [kept.get(name) for name in names] == pictures[:2]
    names.append(kept.keep(pictures[2]))
    assert [kept.get(name) for name in names] == [None, *pictures[1:3]]
    now[0] = 9
    names.append(kept.keep(pictures[3]))
    now[0] = 10
    assert [kept.get(name) for name in names] == [None, None, None, pictures[3]]
    assert len(set(names)) == 4
    assert kept.get("") is None


# --- the page and the numbers -----------------------------------------------------------------


def test_the_page_is_whole_by_itself_and_may_fetch_nothing_else(shared: Running) -> None:
    answer = shared.ask("/")
    html = answer.body.decode()
    assert not re.search(r"(src|href)=.?(?!data:)\w*:?//|@import|url\(", html)
    assert not re.search(r"\son\w+=|style=", html)
    rules = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(rules)
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert policy(page()) != policy(page().replace(b"use strict", b"use nothing"))


def test_what_happens_is_counted(scripted: Running) -> None:
    model = {"model_name": "flux-tiny"}
    scripted.draw(n=2)
    stream(scripted, partial_images=1)
    scripted.draw(size="1x1")
    text = scripted.ask("/metrics").body.decode()
    for line in (
        'requests_success_total{model_name="flux-tiny"} 2.0',
        'requests_refused_total{reason="invalid_value"} 1.0',
        'images_generated_total{model_name="flux-tiny",size="64x64"} 3.0',
        'engine_fallbacks_total{model_name="flux-tiny"} 0.0',
        'e2e_request_latency_seconds_count{model_name="flux-tiny"} 2.0',
        "num_requests_running 0.0",
        "num_requests_waiting 0.0",
        "queue_depth 0.0",
        "ready 1.0",
    ):
        assert f"\nfresco_trt:{line}\n" in text
    stages = "per_stage_req_latency_seconds_sum"
    for stage, seconds in (("text", 0.1), ("stage1", 0.2), ("stage3", 0.1), ("decode", 0.1)):
        assert scripted.count(stages, stage=stage, **model) == pytest.approx(3 * seconds)


def test_steps_on_a_gpu_are_fallbacks(scripted: Running) -> None:
    scripted.pipelines.only.device = "cuda"
    scripted.draw()
    assert scripted.count("engine_fallbacks_total", model_name="flux-tiny") == 1


def test_the_interface_describes_itself(shared: Running) -> None:
    found = shared.ask("/openapi.json").json
    answers = {
        path: set(operation["responses"])
        for path, each in found["paths"].items()
        for operation in each.values()
    }
    drawn = {"200", "400", "401", "404", "408", "413", "429", "500", "503", "504"}
    assert answers == {
        "/health": {"200"},
        "/ready": {"200", "503"},
        "/v1/models": {"200", "401"},
        "/v1/models/{name}": {"200", "401", "404"},
        GENERATIONS: drawn,
        EDITS: drawn,
    }
    assert found["components"]["schemas"]["Generation"]["properties"]["seed"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_SEED,
    }


def test_a_method_that_is_not_there_is_refused_with_those_that_are(shared: Running) -> None:
    answer = shared.ask("/health", {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert answer.error["code"] == "method_not_allowed"
    assert shared.ask(f"{GENERATIONS}/", {}).status == 404  # sent nowhere else
