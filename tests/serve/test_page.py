"""The page at `/` in a browser: one types a prompt, and the sketch becomes the picture."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from fresco_trt.pipelines.checks import MAX_SEED
from tests.browser import needs_browser
from tests.serve.conftest import png, serving
from tests.serve.devtools import opened
from tests.serve.scripted import ScriptedPipelines, soon

KEY = "a-key-of-enough-characters"
STATUS = "document.getElementById('status').textContent"
PICTURE = "document.getElementById('picture').naturalWidth"
SMALL = "[...document.querySelectorAll('#stages img')].map((each) => each.naturalWidth)"


def filled(name: str, value: object) -> str:
    """An expression that types into a field."""
    return f"document.getElementById('{name}').value = '{value}'"


def chosen_file(data: bytes) -> str:
    """An expression that chooses a file."""
    return f"""(() => {{
        const files = new DataTransfer();
        const bytes = Uint8Array.from(atob("{b64encode(data).decode()}"), (c) => c.charCodeAt(0));
        files.items.add(new File([bytes], "a.png"));
        document.getElementById("image").files = files.files;
    }})()"""


@needs_browser
@pytest.mark.slow
def test_a_sketch_becomes_the_picture_and_can_be_stopped(tmp_path: Path) -> None:
    pipelines = ScriptedPipelines(64, editing=(128,))
    script = pipelines.only
    with (
        serving(pipelines, keys=(KEY.encode(),)) as running,
        opened(f"{running.url}/", tmp_path) as page,
    ):
        page.until(f"{STATUS}.includes('wants an API key')")
        page.get(filled("key", KEY))
        page.get("document.getElementById('key').dispatchEvent(new Event('change'))")
        page.until("document.querySelectorAll('#bucket option').length === 2")
        page.get(filled("prompt", "staged bell"))
        page.get(filled("seed", MAX_SEED))
        click = "document.getElementById('draw').click()"
        page.get(click)
        page.until(f"{STATUS}.startsWith('Stage 1 of 3')")
        page.until(f"{PICTURE} === 16")
        script.released.set()
        page.until(f"{STATUS}.startsWith('Done')")
        assert page.get(STATUS).endswith(f"seed {MAX_SEED}")
        page.until(f"{PICTURE} === 64")
        assert page.get(SMALL) == [16, 32, 64]
        assert pipelines.asked == [("staged bell", MAX_SEED)]

        script.released.clear()
        page.get(filled("prompt", "wait"))
        page.get(click)
        soon(lambda: running.count("num_requests_running") == 1)
        page.get(click)
        page.until(f"{STATUS} === 'Stopped'")
        soon(lambda: script.cancelled == 1)

        hidden = "document.getElementById('image-label').hidden"
        assert page.get(hidden)
        page.get("document.getElementById('bucket').selectedIndex = 1")
        page.get("document.getElementById('bucket').dispatchEvent(new Event('change'))")
        assert not page.get(hidden)
        page.get(filled("prompt", "a hat"))
        page.get(click)
        assert page.get("!document.getElementById('form').checkValidity()")  # without a picture
        page.get(chosen_file(png(32, 64)))
        page.get(click)
        page.until(f"{STATUS}.startsWith('Done')")
        assert "32x64: resized to 128x128" in page.get(STATUS)
        page.until(f"{PICTURE} === 128")
        assert page.get(SMALL) == [32, 64, 128]
        assert pipelines.scripts[128].sources[0].getpixel((9, 9)) == (200, 40, 90)
        assert pipelines.scripts[128].drawn[-1] == ("a hat", MAX_SEED)

        page.get(filled("prompt", "fail"))
        page.get(click)
        page.until(f"{STATUS}.startsWith('it stopped')")
        assert all(url.startswith((f"{running.url}/", "data:")) for url in page.asked)
        assert not [said for said in page.said if "401" not in said and "500" not in said]
