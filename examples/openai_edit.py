"""Edit a picture with OpenAI's own client: each stage as it ends, and the edited picture.

    fresco-trt serve --engines engines/flux-kontext-1024x1024-3stage
    python examples/openai_edit.py PICTURE PROMPT [FOLDER] [URL]

Writes partial1.png and so on, and edited.png, into FOLDER, by default the folder that it is called
in. URL is the server's, by default http://127.0.0.1:8000. `pip install openai` has the client.
"""

from __future__ import annotations

import sys
from base64 import b64decode
from pathlib import Path

from openai import OpenAI


def main(picture: str, prompt: str, folder: str = ".", url: str = "http://127.0.0.1:8000") -> None:
    """Ask for a stream, save each picture as it comes, and print what was changed of the source."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    events = client.images.edit(
        image=Path(picture), prompt=prompt, stream=True, partial_images=3, extra_body={"seed": 7}
    )
    for event in events:
        if event.type == "image_edit.partial_image":
            name = f"partial{event.partial_image_index + 1}.png"
        else:
            name = "edited.png"
            for note in event.warnings:
                print(note, file=sys.stderr)
        path = Path(folder) / name
        path.write_bytes(b64decode(event.b64_json))
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
