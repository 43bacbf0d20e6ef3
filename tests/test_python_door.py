"""The door from Python: every public call refuses what it cannot take with an error of the tree, in
its own words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import FrescoError, InvalidArgument, UnsupportedSize
from fresco_trt.plan.arguments import OF_A_CALL, in_python, translated

PACKAGE = Path(fresco_trt.__file__).parent
FOREIGN = re.compile(r"--\w|\x1b|\n")

WRONG: dict[str, list[Any]] = {
    "model": [None, 3, "nope", ""],
    "stages": ["3", 2.0, 2.5, True, 0, -1, 99, "x"],
    "preset": [3, object(), "nope", "balanced,delta=x", "balanced,foo=1"],
    "size": [64, (64,), ("64", 64), (64.0, 64), (nan, 64), "64", "", "0x64", "72x72", (10**9, 64)],
    "delta": ["x", nan, -1, True, 2],
    "shift": ["x", nan, inf, 0, -1, True],
    "cache": ["nope", 3, "", "hicache,interval=x", "hicache,foo=1", "hicache,interval=0"],
}
OF_PLAN = {**WRONG, "steps": ["3", 0, 1.5, True, 10**9, nan]}
OF_BUILD = {name: WRONG[name] for name in ("model", "stages", "preset", "size", "cache")} | {
    "backend": [3, "nope"],
    "precision": ["nope", 3, "int8,keep="],
    "target": [3, "nope=1", "layout=x"],
    "weights": [3, "/nope", object()],
    "out": [3, "/proc/x/y"],
}
OF_TUNE = {
    "model": WRONG["model"],
    "size": [each for each in WRONG["size"] if each != "72x72"],  # has one stage, which is enough
    "speed": ["x", nan, inf, 0, 1, -1, True],
    "floor": [3, "x", "ssim", "ssim=x", "ssim=2", "lpips=0.1", "score=0.5"],
    "weights": [3, "/nope", object()],
    "prompts": [3, "/nope"],
    "scorer": [3, "x", "json:nothing"],
    "backend": [3, "nope"],
    "quick": [1, "yes", None],
    "out": [3, "/proc/x/y.json", "plan.txt"],
}
OF_ENABLE = {name: WRONG[name] for name in ("stages", "preset", "delta", "shift", "cache")} | {
    "model": [3, "nope"],
    "engines": [3, "/nope", "/etc/passwd"],
}
OF_A_PIPELINE: dict[str, list[Any]] = {
    "height": ["64", "x", nan, -64, 3, 10**6],
    "num_inference_steps": ["3", 0, 1.5, True],
    "guidance_scale": ["x", nan, -1],
    "prompt": [3, b"x", "a\ud800", [], [3], None],
    "negative_prompt": [3, ["a", 3]],
    "generator": [3, "x", [3]],
    "latents": [3],
    "prompt_embeds": [3],
    "output_type": [3, "jpeg"],
    "max_sequence_length": [0, -1, "x", 1.5, 513],
    "num_images_per_prompt": ["2", 0, 1.5, True],
    "true_cfg_scale": ["x", nan],
    "joint_attention_kwargs": [3, {"scale": "x"}, {"mask": 1}],
    "callback_on_step_end": [3],
    "callback_on_step_end_tensor_inputs": [["x"]],
}
OF_A_BUNDLE: dict[str, list[Any]] = {
    "seed": ["x", b"x", 1.5, None, True, -1, 2**64, [], [-1], ["x"]],
    "num_images_per_prompt": ["x", 1.5, None, True, 0],
    "guidance": ["x", nan, -1, True],
    "prompt": [3, None, b"x", [], [3], {"a"}, "a\ud800"],
    "on_step": [3],
    "on_stage": ["x"],
    "record_steps": [1, "yes", None],
}


def cases(wrong: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in wrong.items() for value in values]


def refused(call: Callable[..., Any], name: str, value: Any) -> str:
    """The message that a call has for one wrong argument."""
    with pytest.raises(FrescoError) as caught:
        call(**{name: value})
    message = str(caught.value)
    assert not FOREIGN.search(re.sub(r"'fresco-trt [^']*'", "", message)), message
    return message


def test_plan_takes_what_the_command_line_takes() -> None:
    plain = fresco_trt.plan("flux-tiny", stages=2, size=(64, 64), delta=0.05)
    for spelt in ({"size": "64x64", "delta": 0.05}, {"size": [64, 64], "preset": "delta=0.05"}):
        assert fresco_trt.plan("flux-tiny", stages=2, **spelt) == plain  # type: ignore[arg-type]
    with pytest.raises(FrescoError, match=r"delta=0\.1 with preset='balanced,delta=0\.05'"):
        fresco_trt.plan("flux-tiny", stages=2, preset="balanced,delta=0.05", delta=0.1)


def test_plan_refuses_in_its_own_words() -> None:
    for name, value in cases(OF_PLAN):
        given = {"model": "flux-tiny", "stages": 1 if name == "steps" else 2, name: value}
        refused(lambda given=given, **_: fresco_trt.plan(**given), name, value)


def test_build_refuses_in_its_own_words(tmp_path: Path) -> None:
    base: dict[str, Any] = {"model": "flux-tiny", "stages": 2, "size": (64, 64)}
    base |= {"backend": "eager", "out": tmp_path / "out"}
    for name, value in cases(OF_BUILD):
        refused(lambda **wrong: fresco_trt.build(**{**base, **wrong}), name, value)
    assert not (tmp_path / "out").exists()


def test_tune_refuses_in_its_own_words(tmp_path: Path) -> None:
    base: dict[str, Any] = {"model": "flux-tiny", "size": (64, 64), "backend": "eager"}
    base |= {"out": tmp_path / "plan.json"}
    for name, value in cases(OF_TUNE):
        given = base if name == "floor" else {**base, "speed": 2.0}
        refused(lambda given=given, **wrong: fresco_trt.tune(**{**given, **wrong}), name, value)
    refused(lambda **wrong: fresco_trt.tune(**base, **wrong), "floor", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 3, "", "/etc/passwd", "/nope"])
def test_a_bundle_is_looked_for_at_a_path(path: Any) -> None:
    refused(fresco_trt.FrescoPipeline.from_bundle, "path", path)
    if not isinstance(path, str):
        refused(fresco_trt.pretrained, "name", path)


def test_a_loaded_bundle_refuses_in_its_own_words(eager_bundle: Path) -> None:
    with fresco_trt.FrescoPipeline.from_bundle(eager_bundle) as ours:
        for name, value in cases(OF_A_BUNDLE):
            refused(lambda **wrong: ours(**{"prompt": "a", **wrong}), name, value)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_enable_refuses_in_its_own_words(pipe: Any) -> None:
    for name, value in cases(OF_ENABLE):
        message = refused(lambda **wrong: fresco_trt.enable(pipe, **wrong), name, value)
        assert 'size="' not in message
    for wrong in (None, 3, object()):
        refused(fresco_trt.enable, "pipe", wrong)


def test_an_enabled_pipeline_refuses_in_its_own_words(pipe: Any) -> None:
    fresco_trt.enable(pipe, stages=1)
    base = {"prompt": "a", "height": 64, "width": 64, "max_sequence_length": 8}
    base |= {"num_inference_steps": 1, "output_type": "latent"}
    for name, value in cases(OF_A_PIPELINE):
        extra = {"true_cfg_scale": 2.0} if name == "negative_prompt" else {}
        refused(lambda extra=extra, **wrong: pipe(**{**base, **extra, **wrong}), name, value)
    with pytest.raises(UnsupportedSize, match="Fix: pass width=64, height=8"):
        pipe(**{**base, "height": -64})
    fresco_trt.disable(pipe)


def test_a_wrong_type_is_what_python_and_diffusers_raise() -> None:
    error = InvalidArgument("a", expected="b", fix="c")
    assert isinstance(error, TypeError)
    assert isinstance(error, ValueError)
    assert isinstance(error, FrescoError)


# --- words ------------------------------------------------------------------------------------


def messages() -> Iterator[str]:
    """Every text in the package that names an option of the command line."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name in ("cli", "bench"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = " ".join(node.value.split())
                if "--" in text and "`" not in text and len(text) < 200:
                    yield text


def test_no_message_keeps_an_option_of_the_command_line() -> None:
    found = set(messages())
    assert len(found) > 60
    for text in found:
        for spellings in (None, OF_A_CALL):
            said = re.sub(r"'fresco-trt [^']*'|--- .* ---+", "", translated(text, spellings))
            assert not re.search(r"(?<![\w-])--[a-z]", said), text


SAID = {
    "pass --size 64x64 or --size 64x96": 'pass size="64x64" or size="64x96"',
    "pass --stages 2, or another --out": "pass stages=2, or another out",
    "leave --size out": "leave size out",
    "--cache hicache that skips": 'cache="hicache" that skips',
    "the key 'x' in --cache 'a,x=1'": "the key 'x' in cache='a,x=1'",
    "pass --weights PATH, or --weights random": 'pass weights=PATH, or weights="random"',
    "measure it with 'fresco-trt calibrate --measure basis'": None,
    "\x1b[31mred\x1b[0m\n  and long": "red and long",
}


@pytest.mark.parametrize("text", SAID)
def test_options_become_arguments(text: str) -> None:
    assert translated(text) == (SAID[text] or text)


def test_where_an_error_was_is_said_in_the_same_words() -> None:
    error = FrescoError("--size 1x1", expected="--steps 3", fix="pass --out")
    error.context = ("stage 1\x1b[0m",)
    with pytest.raises(FrescoError) as caught, in_python(OF_A_CALL):
        raise error
    assert str(caught.value) == (
        "stage 1: width=1, height=1; expected num_inference_steps=3. Fix: pass out"
    )
