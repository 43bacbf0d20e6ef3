"""`fresco-trt serve`: refused before it listens, ready in one line, and ended by a SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest

from fresco_trt.cli import main as cli
from fresco_trt.cli import serve as command
from fresco_trt.errors import PlanError
from fresco_trt.pipelines.cost import Cost, StageCost
from fresco_trt.pipelines.several import Bucket, WarmUp
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.metrics import ServerMeters
from tests.serve.scripted import PROGRAM

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--queue", "-1"], "--queue"),
        (["--deadline", "0"], "--deadline"),
        (["--deadline", "nan"], "--deadline"),
        (["--drain", "inf"], "--drain"),
        (["--max-images", "11"], "--max-images"),
        (["--max-prompt", "0"], "--max-prompt"),
        (["--max-body", "1"], "--max-body"),
        (["--port", "65536"], "--port 65536"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid"),
        (["--host", "x" * 300], "cannot be listened on"),
        (["--api-key-file", "none"], "--api-key-file none"),
        (["--api-key-file", "k" * 5000], "--api-key-file kkk"),
        (["--engines", "e" * 5000], "--engines eee"),
        (["--trust", "--verify-key", "KEY.pub"], "verify"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_loaded(
    eager_bundle: Path,
    given: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fresco_trt.pipelines.several.FrescoPipeline.over", None)
    assert cli.main(["serve", "--engines", str(eager_bundle), *given]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_bundles_that_draw_the_same_are_refused(
    eager_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--engines", str(eager_bundle)] * 2
    assert cli.main(["serve", *twice]) == 2
    assert "two bundles of flux-tiny 64x64 turbo" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(
    eager_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--engines", str(eager_bundle), "--port", port]) == 2
    assert "a port that is free" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
@pytest.mark.parametrize("keys", [True, False])
def test_a_server_for_everybody_says_so(
    eager_bundle: Path,
    tmp_path: Path,
    host: str,
    warned: bool,
    keys: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fresco_trt.serve.server.Server.run", lambda self: None)
    (tmp_path / "keys").write_text("a-key-of-enough-characters\n")
    given = ["--api-key-file", str(tmp_path / "keys")] if keys else []
    bundle = ["--engines", str(eager_bundle)]
    assert cli.main(["serve", *bundle, "--host", host, "--port", "0", *given]) == 0
    said = "anyone who reaches this address can draw" in capsys.readouterr().err
    assert said == (warned and not keys)


def test_without_the_extra_its_name_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "fastapi" else name)
    assert cli.main(["serve", "--engines", "none"]) == 2
    error = capsys.readouterr().err
    assert "no Python package fastapi" in error
    assert "pip install 'fresco-trt[serve]'" in error


def test_limits_are_checked_from_python_too() -> None:
    assert Limits(queue=0, images=1).images == 1
    with pytest.raises(PlanError, match="from 1 to 10"):
        Limits(images=0)


def test_what_warming_up_cost_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bucket = Bucket(model="flux-tiny", size=(64, 64), preset="turbo")
    loads = Cost(seconds=0.5, host_bytes=40_000_000, device_bytes=None)
    cost = WarmUp(
        bucket=bucket,
        load=1.0,
        first=2.0,
        second=None,
        host_bytes=90_000_000,
        device_bytes=2_000_000_000,
        stages=(
            StageCost(stage=1, load=loads, first=0.25),
            StageCost(stage=2, load=loads, first=None),
        ),
    )
    ready = command._ready("http://here", [cost])
    assert json.loads(json.dumps(ready))["bundles"][0]["stages"][0] == {
        "stage": 1,
        "first": 0.25,
        "seconds": 0.5,
        "host_bytes": 40_000_000,
        "device_bytes": None,
    }
    command._in_words(ready)
    assert capsys.readouterr().out.splitlines() == [
        "flux-tiny 64x64, turbo: loaded in 1.00 s, first picture in 2.00 s, 90 MB in memory, 2000"
        " MB on the GPU",
        "  stage 1: loaded in 0.50 s, 40 MB in memory, drawn in 0.25 s",
        "  stage 2: loaded in 0.50 s, 40 MB in memory",
        "ready: http://here",
    ]
    meters = ServerMeters()
    meters.warmed(cost)
    labels = {"model_name": "flux-tiny", "size": "64x64"}
    assert meters.value("warm_up_memory_bytes", **labels, memory="host") == 90_000_000
    assert meters.value("warm_up_memory_bytes", **labels, memory="device") == 2_000_000_000


def test_a_sighup_reads_again_and_a_sigterm_ends_it_when_all_is_answered() -> None:
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, text=True, **piped) as process, ExitStack() as close:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        ready = json.loads("".join(lines) + "}")
        (bundle,) = ready["bundles"]
        assert (bundle["model"], bundle["size"]) == ("flux-tiny", [64, 64])
        host, _, port = ready["url"].removeprefix("http://").partition(":")
        connection = HTTPConnection(host, int(port), timeout=60)
        close.callback(connection.close)
        body = json.dumps({"prompt": "pause", "n": 2})
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/images/generations", body, headers)
        while not _began(_metrics(ready["url"])):
            pass
        os.kill(process.pid, signal.SIGHUP)
        while b'bundle_reloads_total{outcome="success"} 1.0' not in _metrics(ready["url"]):
            pass
        os.kill(process.pid, signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["data"]) == 2
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert err.splitlines() == [
        f"listening on {ready['url']}, loading",
        "read again: no bundle is another one",
        "stopped",
    ]


def _began(metrics: bytes) -> bool:
    done = b'requests_success_total{model_name="flux-tiny"} 1.0'
    return b"num_requests_running 1.0" in metrics or done in metrics


def _metrics(url: str) -> bytes:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        found: bytes = answer.read()
    return found
