"""Several requests at once: what interleaved ones draw, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.backends.onnxruntime import OnnxRuntimeBackend
from fresco_trt.errors import EngineFailed, IncompatibleOptions, InvalidArgument, PlanError
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.pipelines.turns import Turns

PROMPT = "a bell on a plain blue background"
PATIENCE = 60  # seconds, against a hang


def pixels(pipe: FrescoPipeline, seed: int, **given: Any) -> bytes:
    picture: bytes = pipe(PROMPT, seed=seed, **given).images[0].tobytes()
    return picture


@pytest.mark.parametrize(("kind", "lazy"), [("eager", True), ("onnx", False)])
def test_interleaved_requests_draw_what_they_draw_alone(
    kind: str, lazy: bool, request: pytest.FixtureRequest
) -> None:
    """At every step both requests are between two of their engine calls."""
    folder: Path = request.getfixturevalue(f"{kind}_bundle")
    with FrescoPipeline.from_bundle(folder) as alone:
        expected = [pixels(alone, seed) for seed in range(2)]
    together = threading.Barrier(2)
    with (
        FrescoPipeline.from_bundle(folder, contexts=2, lazy=lazy) as pipe,
        ThreadPoolExecutor(2) as threads,
    ):

        def meet(step: object) -> None:
            together.wait(PATIENCE)

        def draw(seed: int) -> bytes:
            return pixels(pipe, seed, on_step=meet)

        assert list(threads.map(draw, range(2))) == expected
        assert pixels(pipe, 0) == expected[0]


class Meeting(BorrowedRunner):
    """An engine whose every call waits until another one is inside its own."""

    def __init__(self, runner: Any, together: threading.Barrier) -> None:
        super().__init__(runner)
        self.together = together

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.together.wait(PATIENCE)
        return super().__call__(inputs)


def test_contexts_of_one_engine_have_their_own_outputs_and_its_one_session(
    onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = OnnxRuntimeBackend._session

    def session(self: Any, path: Path, *others: Any, **more: Any) -> Any:
        opened.append(path)
        return real(self, path, *others, **more)

    monkeypatch.setattr(OnnxRuntimeBackend, "_session", session)
    with FrescoPipeline.from_bundle(onnx_bundle, contexts=2) as pipe:
        assert len(opened) == len(set(opened)) == len(pipe.runners)
        (other,) = pipe._others
        together = threading.Barrier(2)
        runners = [Meeting(each.runners["stage1.full"], together) for each in (pipe, other)]
        given = [_inputs(runner, value) for value, runner in enumerate(runners)]
        alone = [
            {name: value.clone() for name, value in each._runner(inputs).items()}
            for each, inputs in zip(runners, given, strict=True)
        ]
        with ThreadPoolExecutor(2) as threads:
            both = list(threads.map(lambda runner, inputs: runner(inputs), runners, given))
        for found, expected in zip(both, alone, strict=True):
            assert all(found[name].equal(value) for name, value in expected.items())
        assert not both[0]["velocity"].equal(both[1]["velocity"])


def _inputs(runner: Any, value: int) -> dict[str, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(value)
    return {
        spec.name: torch.rand(spec.shape, generator=generator) for spec in runner.signature.inputs
    }


def test_a_third_request_waits_for_one_of_two_and_the_end_for_all(eager_bundle: Path) -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()

    def wait(step: Any) -> None:
        if step.step == 0:
            inside.release()
            assert go_on.wait(PATIENCE)

    pipe = FrescoPipeline.from_bundle(eager_bundle, contexts=2)
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(pixels, pipe, seed, on_step=wait) for seed in range(3)]
        for _ in range(2):
            assert inside.acquire(timeout=PATIENCE)
        assert not inside.acquire(timeout=0.05)
        assert pipe.prompt_tokens(PROMPT) > 0  # waits for no request
        go_on.set()
        assert len({each.result() for each in running}) == 3
        assert inside.acquire(timeout=PATIENCE)
        pipe.close()
    with pytest.raises(RuntimeError, match="inside its scope only"):
        pipe(PROMPT)


def test_a_callback_draws_in_the_context_of_its_request(eager_bundle: Path) -> None:
    with FrescoPipeline.from_bundle(eager_bundle, contexts=2) as pipe:
        expected = [pixels(pipe, seed) for seed in range(2)]
        within: list[bytes] = []

        def disturb(step: Any) -> None:
            if step.step == 1:
                within.append(pixels(pipe, 1))

        assert pixels(pipe, 0, on_step=disturb) == expected[0]
        assert within == [expected[1]]


def test_what_has_no_contexts_says_so(eager_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for door in (FrescoPipeline.from_bundle, FrescoPipelines.from_bundles):
        with pytest.raises(InvalidArgument, match="contexts"):
            door(eager_bundle, contexts="two")  # type: ignore[operator]
    with pytest.raises(PlanError, match="contexts=0"):
        FrescoPipeline.from_bundle(eager_bundle, contexts=0)
    monkeypatch.setattr("fresco_trt.backends.eager.torch_device", lambda: "cuda")
    monkeypatch.setattr("fresco_trt.pipelines.loading.check_device_memory", lambda *given: None)
    with pytest.raises(IncompatibleOptions, match=r"contexts=2 .*eager on cuda.*one request"):
        FrescoPipeline.from_bundle(eager_bundle, contexts=2)


# --- turns --------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs something in another thread, to its end or until it has waited a moment."""
    with ThreadPoolExecutor(4) as threads:
        yield threads.submit


def test_a_thread_has_one_context_and_gives_it_back(elsewhere: Any) -> None:
    turns = Turns(2)

    def enter() -> int:
        with turns:
            return turns.index

    with turns, turns:
        assert turns.index == 0
        assert elsewhere(enter).result(PATIENCE) == 1
        with turns.all():
            waiting = elsewhere(enter)
            assert not waiting.done()
        assert waiting.result(PATIENCE) == 1
    with pytest.raises(EngineFailed), turns:
        raise EngineFailed("it stopped", expected="an engine", fix="build again")
    with pytest.raises(ValueError, match="not in list"):
        _ = turns.index
    with turns.all():
        pass
    assert elsewhere(enter).result(PATIENCE) == 0


def test_other_runners_share_the_turn_of_the_first_context(elsewhere: Any) -> None:
    turns = Turns(2)

    def enter(of: Turns) -> int:
        with of:
            return of.index

    with turns.first():
        assert elsewhere(enter, turns).result(PATIENCE) == 1
        waiting = elsewhere(enter, turns.first())
        assert not waiting.done()
    assert waiting.result(PATIENCE) == 0
