"""Two replicas on a local Ray: one is killed under load, and no accepted request is lost.

Needs the extra `ray`, which the tests do not install; takes most of a minute.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from fresco_trt.errors import InvalidArgument
from fresco_trt.pipelines.image import FrescoPipeline

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: the extra ray has it")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

PATIENCE = 300  # seconds, against a hang; nothing is measured
PROMPT = "a bell on a plain blue background"
REQUESTS, AT_ONCE = 24, 6


@pytest.fixture(scope="module")
def url(eager_bundle: Path) -> Iterator[str]:
    """Two replicas of the engines behind one door, on a Ray of this process."""
    from ray import serve

    from fresco_trt.serve.ray_app import app

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
    )
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app({"engines": [str(eager_bundle)], "replicas": 2}), name="fresco")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    """Ray takes a number, and none that stands for any."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def replicas() -> list[Any]:
    """The engines' actors that live."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [each for each in named if each["name"].startswith("SERVE_REPLICA::fresco#engines#")]


def kill(replica: Any) -> None:
    """End its process at once."""
    ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))


def ask(url: str, seed: int) -> Any:
    """A picture, or the error that came in its place."""
    body = json.dumps({"prompt": PROMPT, "seed": seed}).encode()
    headers = {"content-type": "application/json"}
    asked = Request(f"{url}/v1/images/generations", body, headers)
    try:
        with urlopen(asked, timeout=PATIENCE) as answer:
            data = json.load(answer)["data"][0]["b64_json"]
    except HTTPError as error:
        return error.read()
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_replica_dies_under_load_and_every_request_is_answered(
    url: str, eager_bundle: Path
) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        asked = [clients.submit(ask, url, seed) for seed in range(REQUESTS)]
        asked[3].result(PATIENCE)
        victim = replicas()[0]
        kill(victim)
        killed = time.monotonic()
        pictures = [each.result(PATIENCE) for each in asked]
    ended = time.monotonic()
    print(f"{REQUESTS} requests in {ended - began:.1f} s, killed at {killed - began:.1f} s")
    with FrescoPipeline.from_bundle(eager_bundle) as pipe:
        for seed, picture in enumerate(pictures):
            assert not isinstance(picture, bytes), picture
            assert np.array_equal(picture, np.asarray(pipe(PROMPT, seed=seed).images[0]))
    while len(replicas()) < 2:
        assert time.monotonic() < ended + PATIENCE
        time.sleep(0.1)
    print(f"two replicas again {time.monotonic() - killed:.1f} s after the kill")
    assert victim not in replicas()


def test_a_stream_goes_on_when_whoever_draws_it_dies(url: str, eager_bundle: Path) -> None:
    body = {"prompt": PROMPT, "seed": 7, "stream": True, "partial_images": 2}
    headers = {"content-type": "application/json"}
    asked = Request(f"{url}/v1/images/generations", json.dumps(body).encode(), headers)
    events: list[Any] = []
    with urlopen(asked, timeout=PATIENCE) as stream:
        for line in stream:
            if not line.startswith(b"data: "):
                continue
            events.append(json.loads(line.removeprefix(b"data: ")))
            if len(events) == 1:
                for replica in replicas():
                    kill(replica)
    kinds = [each["type"].partition(".")[2] for each in events]
    assert kinds == ["partial_image", "partial_image", "completed"], events
    assert [each["partial_image_index"] for each in events[:2]] == [0, 1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(events[-1]["b64_json"]))))
    with FrescoPipeline.from_bundle(eager_bundle) as pipe:
        assert np.array_equal(picture, np.asarray(pipe(PROMPT, seed=7).images[0]))


def test_a_door_answers_for_the_replicas(url: str) -> None:
    with urlopen(f"{url}/ready", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"status": "ready"}
    body = json.dumps({"prompt": PROMPT, "size": "96x96"}).encode()
    asked = Request(f"{url}/v1/images/generations", body, {"content-type": "application/json"})
    with pytest.raises(HTTPError, match="400"):
        urlopen(asked, timeout=PATIENCE)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"engines": []},
        {"engines": ["a"], "gpu": 1},
        {"engines": ["a"], "replicas": 0},
        {"engines": ["a"], "replicas": 3, "max_replicas": 2},
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(wrong: dict[str, Any]) -> None:
    from fresco_trt.serve.ray_app import app

    with pytest.raises(InvalidArgument):
        app(wrong)
