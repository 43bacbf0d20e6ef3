"""Laws of the solvers: order, exactness, and that they touch nothing but their own buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fresco_trt.plan.stages import SOLVERS as NAMES
from fresco_trt.run.solver import SOLVERS

Field = Callable[[torch.Tensor, float], torch.Tensor]

SECOND = [name for name in NAMES if name != "euler"]
UNEVEN = (1.0, 0.93, 0.7, 0.66, 0.3, 0.17, 0.0)


def solve(name: str, field: Field, sigmas: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    """The last state; ``x`` itself is kept."""
    return list(walk(name, field, sigmas, x))[-1]


def walk(
    name: str, field: Field, sigmas: tuple[float, ...], x: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Every state after the first."""
    x = x.clone()
    solver = SOLVERS[name](x)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        solver.step_(x, field(x, sigma), sigma, sigma_next)
        yield x.clone()


def stretched(steps: int) -> tuple[float, ...]:
    """From 1 to 0, with the first step about three times the last: no step as long as another."""
    return tuple(1.0 - 0.5 * u * (3.0 - u) for u in (k / steps for k in range(steps + 1)))


def growth(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """dx/dsigma = x, in a tensor of its own, as an engine answers."""
    return x.clone()


def curved(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + sigma) + 0.3 * x - 0.1


def test_there_is_a_solver_for_every_name_of_the_plan() -> None:
    assert tuple(SOLVERS) == NAMES


@pytest.mark.parametrize(
    ("name", "order", "start", "end"),
    [
        ("euler", 1, 1.0, 0.0),
        ("multistep", 2, 1.0, 0.0),
        # Orders in the log-SNR, which has no end at 1 nor at 0. A corrector adds one.
        ("dpmpp_2m", 2, 0.9, 0.1),
        ("unipc", 3, 0.9, 0.1),
    ],
)
def test_the_observed_order_is_the_declared_one(
    name: str, order: int, start: float, end: float
) -> None:
    """On dx/dsigma = x the solution falls by e^(end - start), whatever the spacing of the steps."""
    x = torch.ones(4, dtype=torch.float64)
    counts = torch.tensor([32, 64, 128, 256], dtype=torch.float64)
    lists = [[end + (start - end) * each for each in stretched(int(n))] for n in counts]
    ends = torch.stack([solve(name, growth, tuple(sigmas), x) for sigmas in lists])
    errors = (ends - math.exp(end - start)).abs().amax(dim=1)
    slope, _ = torch.linalg.lstsq(
        torch.stack([counts.log(), torch.ones(4, dtype=torch.float64)], dim=1),
        errors.log()[:, None],
    ).solution
    assert float(slope) == pytest.approx(-order, abs=0.1)


def test_a_velocity_linear_in_sigma_is_followed_exactly_after_the_first_step() -> None:
    a, b = torch.randn(2, 8, dtype=torch.float64)

    def exact(sigma: float) -> torch.Tensor:
        at: torch.Tensor = a * sigma + b * sigma**2 / 2
        return at

    states = list(walk("multistep", lambda _, sigma: a + b * sigma, UNEVEN, exact(1.0)))
    offset = states[0] - exact(UNEVEN[1])
    assert offset.abs().max() > 1e-4
    for state, sigma in zip(states, UNEVEN[1:], strict=True):
        torch.testing.assert_close(state - exact(sigma), offset, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_is_eulers_bit_for_bit(name: str) -> None:
    x, v = torch.randn(2, 3, 5)
    stepped = solve(name, lambda *_: v, (0.8, 0.55), x)
    assert torch.equal(stepped, x + (0.55 - 0.8) * v)


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("predicted", list(itertools.product([False, True], repeat=4)))
def test_no_prediction_is_continued(name: str, predicted: tuple[bool, ...]) -> None:
    """A step is second order where its velocity and the one before are both from the model."""
    x = torch.randn(3, 5)
    solver = SOLVERS[name](x)
    before = [True, *predicted]
    sigmas = zip(UNEVEN, UNEVEN[1:], predicted, before, strict=False)
    for sigma, sigma_next, now, last in sigmas:
        velocity, start = torch.randn(3, 5), x.clone()
        solver.step_(x, velocity, sigma, sigma_next, predicted=now)
        euler = torch.equal(x, start + (sigma_next - sigma) * velocity)
        assert euler is (now or last)


@pytest.mark.parametrize("name", SECOND)
def test_predictions_leave_the_rest_of_a_stage_second_order(name: str) -> None:
    """After one, two velocities from the model are continued as if none had come before."""
    x, velocities = torch.randn(3, 5), torch.randn(4, 3, 5)
    steps = list(zip(velocities, UNEVEN, UNEVEN[1:], strict=False))
    long, short = SOLVERS[name](x), SOLVERS[name](x)
    for index, (velocity, sigma, sigma_next) in enumerate(steps[:2]):
        long.step_(x, velocity, sigma, sigma_next, predicted=index == 1)
    other = x.clone()
    for velocity, sigma, sigma_next in steps[2:]:
        long.step_(x, velocity, sigma, sigma_next)
        short.step_(other, velocity, sigma, sigma_next)
    assert torch.equal(x, other)


def test_eulers_step_is_the_same_for_a_prediction() -> None:
    x, velocity = torch.randn(2, 3, 5)
    one, other = x.clone(), x.clone()
    SOLVERS["euler"](x).step_(one, velocity, 0.8, 0.55, predicted=True)
    SOLVERS["euler"](x).step_(other, velocity, 0.8, 0.55, predicted=False)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_straight_path_is_a_straight_path(name: str) -> None:
    """A velocity that does not change leaves nothing to correct."""
    x, v = torch.randn(2, 3, 5)
    torch.testing.assert_close(solve(name, lambda *_: v, UNEVEN, x), x - v)


@pytest.mark.parametrize("name", NAMES)
def test_the_engines_velocity_is_read_once_and_kept(name: str) -> None:
    """It lies in a buffer that the engine's next call overwrites."""
    buffer = torch.empty(3, 5)
    fields = torch.randn(len(UNEVEN) - 1, 3, 5)
    remaining = iter(fields)
    x = torch.randn(3, 5)
    apart = iter(fields.clone())
    expected = solve(name, lambda *_: next(apart), UNEVEN, x)
    got = solve(name, lambda *_: buffer.copy_(next(remaining)), UNEVEN, x)
    assert torch.equal(got, expected)
    assert torch.equal(buffer, fields[-1])


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Where the results of all operations lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.add(result.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("name", NAMES)
def test_a_step_allocates_nothing(name: str) -> None:
    x, v = torch.randn(2, 64, 64)
    solver = SOLVERS[name](x)
    solver.step_(x, v, 1.0, 0.9)
    solver.step_(x, v, 0.9, 0.8)
    with Storages() as first:
        solver.step_(x, v, 0.8, 0.7)
    with Storages() as second:
        solver.step_(x, v, 0.7, 0.4)
    assert first.seen == second.seen
    buffers = {"euler": 1, "multistep": 1, "dpmpp_2m": 3, "unipc": 3}
    assert len(first.seen) == 1 + buffers[name]


# --- diffusers -------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[..., Any]] = {
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("shift", [1.0, 9.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_diffusers_scheduler_with_flow_sigmas(name: str, steps: int, shift: float) -> None:
    scheduler = SCHEDULERS[name](
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    sigmas = tuple(scheduler.sigmas.tolist())
    start = torch.randn(1, 3, 5)
    theirs, euler = [start], start
    for timestep, sigma, sigma_next in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
        velocity = curved(theirs[-1], sigma)
        theirs.append(scheduler.step(velocity, timestep, theirs[-1]).prev_sample)
        euler = euler + (sigma_next - sigma) * curved(euler, sigma)
    ours = torch.stack(list(walk(name, curved, sigmas, start)))
    torch.testing.assert_close(ours, torch.stack(theirs[1:]), rtol=0, atol=2e-5)
    # Two steps are Euler's both: the first, and the one to 0.
    assert steps < 3 or (ours[-1] - euler).abs().max() > 5e-4


def test_a_corrector_keeps_what_a_caller_wrote_to_the_tokens() -> None:
    """It changes them by what it found, and does not put back where it would have been."""
    velocities = torch.randn(3, 3, 5)
    ends = []
    for offset in (0.0, 1.0):
        x, solver = torch.zeros(3, 5), SOLVERS["unipc"](torch.zeros(3, 5))
        for velocity, sigma, sigma_next in zip(velocities, UNEVEN, UNEVEN[1:], strict=False):
            solver.step_(x, velocity, sigma, sigma_next)
        ends.append(x.add_(offset))
        solver.step_(x, velocities[0], UNEVEN[3], UNEVEN[4])
    assert (ends[1] - ends[0]).min() > 0.4
