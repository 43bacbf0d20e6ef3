"""Pipelines that draw grey squares as they are told to: what a server does needs no engine."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from PIL import Image

import fresco_trt
from fresco_trt.errors import EngineFailed, PromptTooLong
from fresco_trt.models.family import PromptWarning
from fresco_trt.pipelines.checks import check_cancel
from fresco_trt.pipelines.result import Result, Seconds, StepTime
from fresco_trt.pipelines.several import WARMING_PROMPT, FrescoPipelines

MODEL, EDITOR = "flux-tiny", "flux-kontext"
STAGES = 3

# The command as it is, over pipelines that need no engine: docs/serve.md runs it over real ones.
PROGRAM = """
import sys
import fresco_trt.pipelines.loading as loading
import fresco_trt.pipelines.several as several
from tests.serve.scripted import ScriptedPipelines

pipelines = ScriptedPipelines()
loading.opened = lambda folder, trust: pipelines.only.bundle
several.FrescoPipelines = lambda bundles, trust: pipelines

from fresco_trt.cli.main import main

sys.exit(main(["serve", "--engines", "scripted", "--json", *sys.argv[1:]]))
"""


class ScriptedPipeline:
    """Draws what the first word of a prompt says: `wait` until it is released or cancelled, `pause`
    for a moment and `blink` for less, `fail`, `crash`, `long`, `odd`, and anything else at once.
    """

    device = "cpu"
    obeys = True
    """Whether it does what a prompt says."""
    runners: ClassVar[dict[str, Any]] = {}

    def __init__(self, size: tuple[int, int], model: str = MODEL) -> None:
        self.size = size
        self.bundle = _bundle(size[0], model, self)
        self.plan = self.bundle.plan
        self.drawn: list[tuple[str, int]] = []
        self.sources: list[Image.Image] = []
        self.masks: list[Image.Image | None] = []
        self.began = threading.Semaphore(0)
        """Released at the beginning of each request that waits."""
        self.released = threading.Event()
        self.cancelled = self.closed = 0

    def prompt_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def close(self) -> None:
        self.closed += 1

    def __call__(
        self,
        prompt: str,
        *,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        seed: int = 0,
        guidance: float | None = None,
        on_stage: Callable[[int, Image.Image], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Result:
        word = prompt.split()[0] if self.obeys and prompt.split() else ""
        act = getattr(self, f"_{word}", None)
        if act is not None:
            act(cancel)
        for stage in range(1, STAGES):
            if on_stage is not None:
                on_stage(stage, square(self.size[0] // 2 ** (STAGES - stage), seed))
            if word == "halfway" and stage == 2:
                self._fail(cancel)
            if word == "staged":
                self._wait(cancel)
        self.drawn.append((prompt, seed))
        if image is not None and prompt != WARMING_PROMPT:
            self.sources.append(image)
            self.masks.append(mask)
        return _result(square(self.size[0], seed), seed)

    def _wait(self, cancel: Callable[[], bool]) -> None:
        self.began.release()
        while not self.released.wait(0.005):
            try:
                check_cancel(cancel)
            except Exception:
                self.cancelled += 1
                raise

    def _pause(self, cancel: Any) -> None:
        time.sleep(0.3)

    def _blink(self, cancel: Any) -> None:
        time.sleep(0.05)

    def _fail(self, cancel: Any) -> None:
        raise EngineFailed("it stopped", expected="an engine that runs", fix="build again")

    def _crash(self, cancel: Any) -> None:
        raise ZeroDivisionError("a secret of the inside")

    def _long(self, cancel: Any) -> None:
        raise PromptTooLong("40 tokens", expected="at most 32", fix="shorten it")

    def _odd(self, cancel: Any) -> None:
        warnings.warn("the model knows no such words: 'odd'", PromptWarning, stacklevel=2)


class ScriptedPipelines(FrescoPipelines):
    """Buckets as they are told, without a bundle behind them; `load` is called to load one."""

    def __init__(
        self, *sizes: int, load: Callable[[], None] = lambda: None, editing: tuple[int, ...] = ()
    ) -> None:
        """Of `sizes` that are drawn from a prompt alone, and of those that edit."""
        drawing = sizes or (() if editing else (64,))
        self.scripts = {size: ScriptedPipeline((size, size)) for size in drawing}
        self.scripts |= {size: ScriptedPipeline((size, size), EDITOR) for size in editing}
        self.load = load
        super().__init__([each.bundle for each in self.scripts.values()])

    def pipeline_of(self, bundle: Any) -> Any:
        self.load()
        return bundle.script

    @property
    def only(self) -> ScriptedPipeline:
        """The pipeline of the first bucket."""
        return next(iter(self.scripts.values()))

    @property
    def asked(self) -> list[tuple[str, int]]:
        """What was drawn for clients."""
        return [each for each in self.only.drawn if each[0] != WARMING_PROMPT]


def _bundle(size: int, model: str, script: ScriptedPipeline) -> Any:
    preset = "turbo" if model == MODEL else "fast"
    plan = fresco_trt.plan(model, stages=STAGES, preset=preset, size=(size, size))
    manifest = SimpleNamespace(model=SimpleNamespace(name=model))
    return SimpleNamespace(
        plan=plan, manifest=manifest, folder=Path("nowhere"), script=script, seen=script, batch=1
    )


def square(side: int, seed: int) -> Image.Image:
    """What is drawn."""
    return Image.new("RGB", (side, side), (seed % 256,) * 3)


def _result(image: Image.Image, seed: int) -> Result:
    seconds = Seconds(total=0.5, text=0.1, denoise=0.3, engines=0.2, decode=0.1)
    steps = tuple(
        StepTime(stage=stage, sigma=1.0, action="full", seconds=0.1, engine_seconds=0.05)
        for stage in (1, 1, 2, 3)
    )
    return Result(images=[image], seeds=(seed,), nfe=4, seconds=seconds, steps=steps)


def soon(holds: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something holds; the seconds are against a hang."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)
