"""Draw with OpenAI's own client: two partial pictures as the sketch is refined, and the picture.

    make serve
    python examples/openai_client.py [FOLDER] [URL]

Writes partial1.png, partial2.png and picture.png into FOLDER, by default the folder that it is
called in. URL is the server's, by default http://127.0.0.1:8000. `pip install openai` has the
client.
"""

from __future__ import annotations

import sys
from base64 import b64decode
from pathlib import Path

from openai import OpenAI

PROMPT = "a red apple on a plain blue background"


def main(folder: str = ".", url: str = "http://127.0.0.1:8000") -> None:
    """Ask for a stream, and save each picture as it comes."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    events = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7}
    )
    for event in events:
        if event.type == "image_generation.partial_image":
            name = f"partial{event.partial_image_index + 1}.png"
        else:
            name = "picture.png"
        path = Path(folder) / name
        path.write_bytes(b64decode(event.b64_json))
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
