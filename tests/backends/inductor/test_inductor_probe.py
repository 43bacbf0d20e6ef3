"""Laws of asking a child what a compiled file takes: it dies in place of this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fresco_trt.backends.inductor import build as inductor_build
from fresco_trt.backends.inductor import probe as inductor_probe
from fresco_trt.backends.inductor.build import compile_layer
from fresco_trt.backends.inductor.probe import constants_of
from fresco_trt.backends.transformer import torch_version
from fresco_trt.errors import BuildError
from fresco_trt.plan.signature import GraphSignature, TensorSpec

PATH = Path("blocks/double-256-0123.pt2")
NAMES = ["weight", "bias"]
GOOD = f"import sys\nprint('a greeting')\nprint({json.dumps(NAMES)!r} if sys.argv[1:] else 1)"
# Of a signal, without leaving a picture of its memory behind.
DEAD = """
import os, resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were loaded in this process; no child has loaded any yet."""
    loaded: list[str] = []

    def load(path: str) -> SimpleNamespace:
        loaded.append(path)
        return SimpleNamespace(get_constant_fqns=lambda: NAMES)

    monkeypatch.setattr(inductor_probe, "_PROVEN", set())
    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    return loaded


def test_the_first_file_is_loaded_in_a_child_and_later_ones_here(
    here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor_probe, "_CHILD", GOOD)
    assert constants_of(PATH, "cuda") == set(NAMES)
    assert here == []
    monkeypatch.setattr(inductor_probe, "_CHILD", DEAD)
    assert constants_of(PATH, "cuda") == set(NAMES)
    assert here == [str(PATH)]


def test_code_for_the_cpu_needs_no_child(here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_probe, "_CHILD", DEAD)
    assert constants_of(PATH, "cpu") == set(NAMES)
    assert here == [str(PATH)]


@pytest.mark.parametrize(
    ("child", "said"),
    [
        (DEAD, "was ended by SIGSEGV"),
        ("import os\nos.kill(os.getpid(), 40)", "was ended by signal 40"),
        ("raise SystemExit(3)", "ended with exit status 3: silent"),
        ("raise OSError('no device')", "ended with exit status 1: OSError: no device"),
        ("print('Segmentation')", "gave no names of weights but 'Segmentation"),
        ("print(7)", "gave no names of weights but '7"),
        ("", "gave no names of weights but ''"),
        ("import time\ntime.sleep(60)", "did not end within 0.5 s"),
    ],
)
def test_a_child_that_fails_is_an_error_every_time(
    here: list[str], monkeypatch: pytest.MonkeyPatch, child: str, said: str
) -> None:
    monkeypatch.setattr(inductor_probe, "_CHILD", child)
    if "sleep" in child:
        monkeypatch.setattr(inductor_probe, "_SECONDS", 0.5)
    for _ in range(2):
        with pytest.raises(BuildError) as caught:
            constants_of(PATH, "cuda")
        assert said in caught.value.given
        assert str(torch_version()) in caught.value.given
        assert "--backend eager" in caught.value.fix
    assert here == []


def test_a_layer_that_cannot_be_loaded_leaves_no_file(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(layer: object, signature: object, path: Path, *rest: object) -> None:
        path.write_bytes(b"code")

    monkeypatch.setattr(inductor_build, "_compile", compiled)
    monkeypatch.setattr(inductor_build, "shares_runtime", lambda path: True)
    monkeypatch.setattr(inductor_probe, "_CHILD", DEAD)
    spec = TensorSpec(name="x", dtype="float32", shape=(2,))
    signature = GraphSignature(
        inputs=(spec,), outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),)
    )
    with pytest.raises(BuildError, match=r"the single-4 that it compiled: .* SIGSEGV"):
        compile_layer(torch.nn.Linear(2, 2), signature, tmp_path / "single-4.pt2", "cuda", None)
    assert list(tmp_path.iterdir()) == []
    assert here == []
