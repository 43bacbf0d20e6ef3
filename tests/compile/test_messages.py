"""What a compilation says: on one line, without terminal codes, and no flag of another door."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import fresco_trt.compile
from fresco_trt import errors
from fresco_trt.backends.base import Missing, check_precision, unavailable
from fresco_trt.compile import counters
from fresco_trt.compile.messages import own_words, translate
from fresco_trt.compile.options import library
from fresco_trt.errors import EngineFailed, FrescoError, UnsupportedGraph
from fresco_trt.files.atomic_file import writing
from tests.compile.compiling import Small, compiled

FOREIGN = re.compile(r"--\w|bundle|fresco-trt (build|verify)|\x1b|\n")


def kinds(of: type[FrescoError] = FrescoError) -> Iterator[type[FrescoError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


MADE_HERE = (errors.UnsupportedGraph, errors.IncompatibleOptions)


@pytest.mark.parametrize("kind", [each for each in kinds() if each not in MADE_HERE])
def test_an_error_of_another_part_says_what_can_be_done_here(kind: type[FrescoError]) -> None:
    error = kind(
        "\x1b[96mstep 3\x1b[0m\n  failed", expected="one\nline", fix="pass --backend eager"
    )
    translate(error)
    assert not FOREIGN.search(str(error))
    assert str(error).startswith("step 3 failed; expected one line. Fix: ")


def test_the_library_that_a_fix_names_is_named_as_an_option() -> None:
    error = unavailable("tensorrt", Missing(what="a GPU", fix="use one, or --backend onnxruntime"))
    translate(error)
    assert error.fix == "use one, or options={'backend': 'onnxruntime'}"


def test_a_full_disk_is_told_to_pass_another(tmp_path: Path) -> None:
    with pytest.raises(FrescoError) as caught, own_words(), writing(tmp_path):
        raise OSError(28, "No space left on device")
    assert (
        caught.value.fix == "free some space there, or pass options={'cache': ...} on another disk"
    )
    assert not FOREIGN.search(str(caught.value))


def test_weights_that_a_library_does_not_run_are_refused_before_anything_is_built(
    cache: Path,
) -> None:
    module, x = Small().to(torch.bfloat16), torch.ones(2, 4, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedGraph) as caught:
        compiled(module, cache, strict=True)(x)
    assert str(caught.value) == (
        "its weights are in bfloat16 for the engine library onnxruntime; expected one of fp32."
        " Fix: convert the model, or pass options={'backend': ...} with a library that runs it"
    )
    with pytest.raises(FrescoError, match="--precision"):
        check_precision(library("onnxruntime").describe(), "bf16")


def texts(path: Path) -> Iterator[str]:
    """Every string of a file that is no docstring."""
    tree = ast.parse(path.read_text("utf-8"))
    said = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_no_text_of_its_own_is_of_another_door() -> None:
    folder = Path(fresco_trt.compile.__file__).parent
    files = [path for path in folder.glob("*.py") if path.name != "messages.py"]
    assert len(files) > 5
    assert not [each for path in files for each in texts(path) if FOREIGN.search(each.strip("\n"))]


def test_an_engine_that_fails_at_a_call_is_told_what_to_do_here(
    cache: Path, torch_tensorrt: SimpleNamespace
) -> None:
    torch_tensorrt.load = lambda path: broken
    with pytest.raises(EngineFailed, match=r"Fix: remove that engine from the cache, or pass opt"):
        compiled(Small(), cache, backend="torch-tensorrt")(torch.randn(2, 4))


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("CUDA error:\n  an illegal access")


def unheard_of(x: Tensor) -> Tensor:
    return torch.special.airy_ai(x)


def test_what_cannot_be_exported_is_said_with_the_operator_on_one_line(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = counters()
    with caplog.at_level(logging.WARNING, "fresco_trt"):
        compiled(unheard_of, cache)(torch.ones(2, 4))
    (record,) = caplog.records
    assert not FOREIGN.search(record.getMessage())
    (reason,) = counters().fell_back.keys() - before.fell_back.keys()
    assert reason.startswith("the exporter stopped: aten.special_airy_ai.default: ")
    assert not FOREIGN.search(reason)
    assert len(reason) < 300
