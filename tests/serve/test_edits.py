"""`POST /v1/images/edits`: OpenAI's client edits, and whatever else a form may hold is named."""

from __future__ import annotations

import asyncio
import io
import runpy
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError
from PIL import Image

from fresco_trt.bundle import open_bundle
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.serve.drawing import Order
from fresco_trt.serve.guard import Guard
from fresco_trt.serve.limits import Limits
from tests.pipelines.test_edit import built
from tests.serve.conftest import EDITS, GENERATIONS, Form, Running, part, png, serving
from tests.serve.scripted import ScriptedPipelines

PROMPT = "make the square blue"
ROOT = Path(__file__).parents[2]
APPLE = "a red apple on a plain blue background"
SOURCE = png()


@pytest.fixture(scope="module")
def both() -> Iterator[Running]:
    """A server that draws at 64x64 and edits at 128x128; for tests that leave nothing behind."""
    with serving(ScriptedPipelines(64, editing=(128,)), images=4, source=1 << 20) as running:
        yield running


def pixels(given: Any) -> Any:
    if isinstance(given, str):
        given = Image.open(io.BytesIO(b64decode(given)))
    elif isinstance(given, Path):
        given = Image.open(io.BytesIO(given.read_bytes()))
    return np.asarray(given).astype(int)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


NOISY = Image.effect_noise((64, 64), 60).convert("RGB")


# --- OpenAI's client --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines(eager_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of flux-tiny, and of a small Kontext that refines only what an edit touches."""
    folder = built(tmp_path_factory.mktemp("kontext") / "bundle", stages=3, preset="specedit")
    with serving(FrescoPipelines([open_bundle(eager_bundle), open_bundle(folder)])) as running:
        yield running


@pytest.mark.filterwarnings("ignore::fresco_trt.pipelines.selective.EditWarning")
def test_the_client_edits_with_real_engines(engines: Running) -> None:
    images, seed = engines.client().images, {"seed": 7}
    drawer, bucket = engines.pipelines.buckets
    expected = engines.pipelines[bucket](PROMPT, image=NOISY, seed=7).images[0]
    reply = images.edit(image=("a.png", saved(NOISY)), prompt=PROMPT, user="me", extra_body=seed)
    assert (pixels(reply.data[0].b64_json) == pixels(expected)).all()  # type: ignore[index]
    assert (reply.size, reply.output_format, reply.background) == ("64x64", "png", "opaque")
    assert reply.usage is not None
    tokens = engines.pipelines.bundle(bucket).plan.stages[-1].grid.tokens
    assert reply.usage.input_tokens_details.image_tokens == tokens
    assert reply.usage.output_tokens == tokens
    first, *_, last = images.edit(
        image=[saved(NOISY)], prompt=PROMPT, stream=True, partial_images=3, extra_body=seed
    )
    assert first.type == "image_edit.partial_image"
    assert first.partial_image_index == 0
    assert pixels(first.b64_json).shape == (32, 32, 3)
    assert last.type == "image_edit.completed"
    assert (pixels(last.b64_json) == pixels(expected)).all()
    assert last.usage.total_tokens == reply.usage.total_tokens
    drawn = images.generate(prompt=APPLE, extra_body=seed)
    again = engines.pipelines[drawer](APPLE, seed=7).images[0]
    assert (pixels(drawn.data[0].b64_json) == pixels(again)).all()  # type: ignore[index]


def test_what_the_client_leaves_empty_is_left_out(both: Running) -> None:
    reply = both.client().images.edit(
        image=io.BytesIO(SOURCE), prompt=PROMPT, n=2, size=None, user="", quality="fast"
    )
    assert (len(reply.data or []), reply.size, reply.quality) == (2, "128x128", "fast")
    assert reply.safety_identifier is None


def test_pictures_of_an_edit_can_come_by_url(both: Running) -> None:
    form = Form(SOURCE, prompt=PROMPT, response_format="url", output_format="webp")
    url = both.edit(form).json["data"][0]["url"]
    answer = both.ask(url.removeprefix(both.url))
    assert answer.headers["content-type"] == "image/webp"


def test_the_client_reads_what_is_refused(both: Running) -> None:
    images = both.client().images
    with pytest.raises(BadRequestError, match="leave the mask out") as caught:
        images.edit(image=SOURCE, mask=SOURCE, prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == ("no_masks", "mask")
    with pytest.raises(BadRequestError, match="expected the one to edit"):
        images.edit(image=[SOURCE, SOURCE], prompt=PROMPT)
    with pytest.raises(NotFoundError, match="flux-kontext"):
        images.edit(image=SOURCE, prompt=PROMPT, model="gpt-image-1")


def test_the_example_saves_each_stage_and_says_what_was_changed(
    both: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.png").write_bytes(SOURCE)
    example = runpy.run_path(str(ROOT / "examples" / "openai_edit.py"))
    example["main"](str(tmp_path / "in.png"), PROMPT, str(tmp_path), both.url)
    saved = {path.name: pixels(path).shape[0] for path in tmp_path.iterdir()}
    assert saved == {
        "in.png": 64,
        "partial1.png": 32,
        "partial2.png": 64,
        "edited.png": 128,
    }
    assert "64x64: resized to 128x128" in capsys.readouterr().err


def test_a_mask_of_the_client_says_what_may_change(engines: Running) -> None:
    """As OpenAI has it: transparent where the picture may change."""
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 16, 16))
    shape = Image.new("L", (64, 64), 0)
    shape.paste(255, (0, 0, 16, 16))
    images, seed = engines.client().images, {"seed": 7}
    pipeline = engines.pipelines[engines.pipelines.buckets[1]]
    expected = pipeline(PROMPT, image=NOISY, mask=shape, seed=7).images[0]
    for mask in (saved(clear), saved(shape)):
        reply = images.edit(image=saved(NOISY), mask=mask, prompt=PROMPT, extra_body=seed)
        assert (pixels(reply.data[0].b64_json) == pixels(expected)).all()  # type: ignore[index]
    small = images.edit(image=saved(NOISY), mask=saved(shape.resize((8, 8))), prompt=PROMPT)
    assert "the mask is 8x8: resized to 64x64" in small.warnings  # type: ignore[attr-defined]
    whole = saved(Image.new("L", (64, 64), 255))
    all_of_it = images.edit(image=saved(NOISY), mask=whole, prompt=PROMPT)
    assert "all of it was drawn anew" in "".join(all_of_it.warnings)  # type: ignore[attr-defined]
    with pytest.raises(BadRequestError, match="black everywhere") as caught:
        images.edit(image=saved(NOISY), mask=saved(Image.new("L", (64, 64))), prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == ("picture_invalid", "mask")


# --- who edits --------------------------------------------------------------------------------


def test_models_say_whether_they_edit(both: Running) -> None:
    found = {model["id"]: model["edits"] for model in both.ask("/v1/models").json["data"]}
    assert found == {"flux-tiny": False, "flux-kontext": True}


def test_a_model_of_the_other_kind_is_refused_by_name(both: Running) -> None:
    edited = both.edit(Form(SOURCE, prompt=PROMPT, model="flux-tiny"))
    drawn = both.draw(model="flux-kontext")
    for answer, code, other in (
        (edited, "no_edits", "flux-kontext"),
        (drawn, "no_generations", "flux-tiny"),
    ):
        assert (answer.status, answer.error["code"]) == (400, code)
        assert answer.error["param"] == "model"
        assert f"expected {other}" in answer.error["message"]
    assert both.draw(size="128x128").error["param"] == "size"


def test_a_server_of_one_kind_names_the_other_path(scripted: Running) -> None:
    answer = scripted.edit(Form(SOURCE, prompt=PROMPT))
    assert (answer.status, answer.error["code"]) == (400, "no_edits")
    assert GENERATIONS in answer.error["message"]
    with serving(ScriptedPipelines(editing=(64,))) as running:
        answer = running.draw()
        assert (answer.status, answer.error["code"]) == (400, "no_generations")
        assert EDITS in answer.error["message"]
        assert running.edit(Form(SOURCE, prompt=PROMPT)).status == 200


def test_a_replica_on_ray_is_given_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    from fresco_trt.serve import ray_app

    pipelines = ScriptedPipelines(editing=(64,))
    monkeypatch.setattr(ray_app, "_bundles", lambda settings: pipelines)
    engines = ray_app.Engines(ray_app.RayArguments(engines=["somewhere"]))
    source, mask = Image.new("RGB", (64, 64), (1, 2, 3)), Image.new("L", (64, 64), 255)

    class Stream:
        """As Ray's handle answers: what a replica yields, and a way to end it."""

        def __init__(self, *sent: Any) -> None:
            self._events = engines.draw(*sent)

        def __aiter__(self) -> Any:
            return self._events

        def cancel(self) -> None:
            pass

    workers = object.__new__(ray_app.RayWorkers)
    remote = SimpleNamespace(draw=SimpleNamespace(remote=Stream))
    workers._handle = SimpleNamespace(options=lambda stream: remote)
    order = Order(
        bucket=pipelines.buckets[0],
        prompt=PROMPT,
        seeds=(5,),
        guidance=None,
        previews=0,
        tell=lambda event: None,
        source=source,
        mask=mask,
    )

    async def draw() -> list[Any]:
        return [event async for event in workers.draw(order)]

    *_, drawn = asyncio.run(draw())
    engines._queue.close(60)
    assert drawn.seed == 5
    assert (pipelines.only.sources, pipelines.only.masks) == ([source], [mask])


# --- the source -------------------------------------------------------------------------------


def turned() -> bytes:
    """White above, and turned by its EXIF data to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (128, 128))
    image.paste((255, 255, 255), (0, 0, 128, 16))
    return saved(image, exif=exif)


COLOUR = (200, 40, 90)
FLAT = Image.new("RGB", (128, 128), COLOUR)
FRAMES = [Image.new("RGB", (128, 128), (level, 0, 0)) for level in (250, 10)]
SOURCES: dict[str, tuple[bytes, tuple[int, int, int], str]] = {
    "another size": (saved(FLAT.resize((64, 32))), COLOUR, "64x32: resized to 128x128, which"),
    "CMYK": (saved(FLAT.convert("CMYK"), "TIFF"), COLOUR, ""),
    "palette": (saved(FLAT.quantize(2)), COLOUR, ""),
    "16 bits": (saved(Image.fromarray(np.full((128, 128), 257 * 99, np.uint16))), (99,) * 3, ""),
    "clear": (saved(Image.new("RGBA", (128, 128), (*COLOUR, 0))), (255,) * 3, "transparent"),
    "animated": (
        saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        (250, 0, 0),
        "several frames",
    ),
    "turned": (turned(), (0, 0, 0), ""),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_of_any_form_is_read_and_what_is_changed_is_said(both: Running, kind: str) -> None:
    data, colour, note = SOURCES[kind]
    answer = both.edit(Form(data, prompt=PROMPT))
    assert answer.status == 200, answer.body
    seen = both.pipelines.scripts[128].sources[-1]
    assert (seen.mode, seen.size) == ("RGB", (128, 128))
    assert np.abs(pixels(seen)[64, 10] - colour).max() <= 2
    assert (kind != "turned") or pixels(seen)[64, 127].min() == 255
    warnings = answer.json["warnings"]
    assert len(warnings) == bool(note)
    assert note in "".join(warnings)


NOISE = saved(Image.effect_noise((64, 64), 50))
POSTSCRIPT = saved(FLAT, "EPS")
BROKEN = {
    "empty": b"",
    "text": b"no picture",
    "cut short": NOISE[: len(NOISE) // 2],
    "a program of its own": POSTSCRIPT,
    "100 megapixels": saved(Image.new("1", (10_000, 10_000))),
    "no pixels": b"GIF89a" + bytes(20),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_source_is_refused(both: Running, kind: str) -> None:
    answer = both.edit(Form(BROKEN[kind], prompt=PROMPT))
    assert (answer.status, answer.error["code"]) == (400, "picture_invalid")
    assert answer.error["param"] == "image"
    assert "object at" not in answer.error["message"]


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"steps": 4, "input_fidelity": "high"}, "steps", "unknown: 'steps', 'input_fidelity'"),
        ({"n": "two"}, "n", "integer"),
        ({"n": 5}, "n", "at most 4 here"),
        ({"seed": -1}, "seed", "greater"),
        ({"size": "64x64"}, "size", "128x128"),
        ({"stream": "maybe"}, "stream", "boolean"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"output_compression": 50}, "output_compression", "jpeg or webp"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"guidance": "nan"}, "guidance", "finite"),
    ],
)
def test_a_wrong_field_is_named(
    both: Running, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = both.edit(Form(SOURCE, **{"prompt": PROMPT, **fields}))
    assert (answer.status, answer.error["param"]) == (400, param)
    assert said in answer.error["message"]


IMAGE = part("image", SOURCE, b'; filename="a.png"')
TEXT = part("prompt", b"a hat")
END = b"--edge--\r\n"
PLAIN = Form.content_type
FORMS: dict[str, tuple[str, bytes, str]] = {
    "another type": ("application/json", b'{"prompt": "a"}', "multipart/form-data"),
    "no type": ("", TEXT + IMAGE + END, "multipart/form-data"),
    "no boundary": ("multipart/form-data", TEXT + IMAGE + END, "without a boundary"),
    "another boundary": (
        "multipart/form-data; boundary=other",
        TEXT + IMAGE + END,
        "does not begin with its boundary",
    ),
    "no parts": (PLAIN, END, "prompt"),
    "nothing": (PLAIN, b"", "does not begin"),
    "no end": (PLAIN, TEXT + IMAGE, "cut short"),
    "cut within a picture": (PLAIN, TEXT + IMAGE[:-40], "cut short"),
    "more after its end": (PLAIN, TEXT + IMAGE + END + TEXT, "more after its end"),
    "no prompt": (PLAIN, IMAGE + END, "prompt: Field required"),
    "no picture": (PLAIN, TEXT + END, "no picture"),
    "prompt twice": (PLAIN, TEXT + TEXT + IMAGE + END, "'prompt' comes twice"),
    "mask twice": (PLAIN, TEXT + IMAGE + part("mask", b"a") * 2 + END, "2 masks; expected one"),
    "picture twice": (PLAIN, TEXT + IMAGE + IMAGE + END, "2 pictures"),
    "a file as text": (PLAIN, part("n", b"1", b'; filename="n"') + IMAGE + END, "'n' is a file"),
    "no UTF-8": (PLAIN, part("prompt", b"\xff") + IMAGE + END, "no UTF-8"),
    "no name": (PLAIN, b"--edge\r\ncontent-type: text/plain\r\n\r\na\r\n" + END, "no name"),
    "no headers": (PLAIN, b"--edge\r\nabc\r\n" + END, "without headers"),
    "long headers": (PLAIN, part("a" * 5000, b"a") + END, "4096 bytes"),
    "many parts": (PLAIN, TEXT * 70 + END, "twice"),
    "many pictures": (PLAIN, TEXT + IMAGE * 70 + END, "over 64 parts"),
    "a form within": (
        PLAIN,
        part("image", b"a", b"\r\ncontent-type: multipart/mixed; boundary=in") + END,
        "a form within",
    ),
    "base64": (
        PLAIN,
        part("image", b"aGk=", b"\r\ncontent-transfer-encoding: base64") + END,
        "'base64'",
    ),
}


@pytest.mark.parametrize("kind", FORMS)
def test_what_is_no_form_is_refused_by_what_it_is(both: Running, kind: str) -> None:
    content_type, body, said = FORMS[kind]
    answer = both.ask(EDITS, body, content_type=content_type)
    assert answer.status == 400
    assert said in answer.error["message"]


def test_a_picture_may_be_larger_than_a_body_of_text(both: Running) -> None:
    assert both.ask(EDITS, bytes(600_000), content_type=PLAIN).status == 400
    for path, size in ((EDITS, 1 << 20), (GENERATIONS, 1 << 19)):
        with both.socket() as sent:
            head = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {size + 1}\r\n\r\n"
            sent.sendall(head.encode())
            assert sent.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_bodies_have_so_much_memory_together_and_give_it_back() -> None:
    goes_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert len((await receive())["body"]) == 4000
        await goes_on.wait()
        await send({"type": "http.response.start", "status": 200})

    limits = Limits(source=4096, body=4096, bodies=6000)
    guard = Guard(app, keys=(), limits=limits, refused=lambda code: None)

    async def status(size: int) -> int:
        parts = [{"body": bytes(size // 2), "more_body": more} for more in (False, True)]
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", **parts.pop()}

        async def send(message: Any) -> None:
            sent.append(message)

        await guard({"type": "http", "path": EDITS, "method": "POST", "headers": []}, receive, send)
        return int(sent[0]["status"])

    async def ask() -> list[int]:
        first = asyncio.create_task(status(4000))
        await asyncio.sleep(0)
        refused = [await status(4000), await status(9000)]
        goes_on.set()
        return [*refused, await first, await status(4000)]

    assert asyncio.run(ask()) == [503, 413, 200, 200]
