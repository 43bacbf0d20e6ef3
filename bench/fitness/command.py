"""The command: from arguments to the stored document.

A killed run goes on where it was if the same command is given again, with more scenes if it likes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.fitness import tune
from bench.fitness.entries import Entry, steps_of, with_tuned
from bench.fitness.tables import fitness_table, fitness_verdict
from bench.study import SOURCES
from fresco_trt.bench.instrument import LeftOut
from fresco_trt.bench.job import check_renderer, setup_of
from fresco_trt.bench.options import BACKEND
from fresco_trt.bench.options import Options as BenchOptions
from fresco_trt.bench.plain import MODEL
from fresco_trt.bench.record import circumstances, store
from fresco_trt.bench.results_log import ResultsLog, differences, inputs_digest
from fresco_trt.cli import display
from fresco_trt.errors import FrescoError, IncompatibleOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bench.fitness.evaluator import Evaluator
    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.instrument import Scores
    from fresco_trt.bench.model_runner import Setup
    from fresco_trt.tune.perceptual import Network

    Say = Callable[[str], None]

OUT = Path("bench/results/demo-fitness.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for. ``weights`` is a pipeline folder, None for those that ship."""

    scenes: int
    weights: str | None = None
    size: str | None = None
    backend: str = BACKEND
    out: Path = OUT

    @property
    def log(self) -> Path:
        """What was measured so far."""
        return self.out.with_suffix(".jsonl")

    @property
    def bench(self) -> BenchOptions:
        """The same for the package's bench."""
        return BenchOptions(
            model=MODEL,
            scenes=self.scenes,
            size=self.size,
            weights=self.weights,
            backend=self.backend,
        )


class Clock:
    """Says how long the rest takes, by what a step has taken."""

    def __init__(self, steps: int, say: Say) -> None:
        self._left, self._say, self._done, self._began = steps, say, 0, 0.0

    def begin(self, evaluator: Evaluator) -> None:
        """Time a step, and say what all that is left takes."""
        wall, cores = (self._left * each / 60 for each in evaluator.step_seconds())
        self._say(f"{self._left} steps: about {wall:.0f} min, {cores:.0f} min of one core")
        self._done, self._began = 0, perf_counter()

    def tell(self, what: str, entries: Iterable[Entry]) -> None:
        """What was drawn by such entries, and the time left at the pace since it began."""
        steps = steps_of(entries)
        self._left, self._done = self._left - steps, self._done + steps
        left = self._left * (perf_counter() - self._began) / self._done
        self._say(f"{what}, {left / 60:.1f} min left")


def run(options: Options, progress: Progress, say: Say) -> dict[str, Any]:
    """Tune, measure and store; the stored document.

    Raises IncompatibleOptions for an unfinished run of another request, EngineFailed, PlanError,
    WeightsNotFound, BackendUnavailable and OutputNotWritable.
    """
    from bench.fitness.evaluator import renders
    from bench.fitness.rows import document_of
    from fresco_trt.bench.scenes.judge import held_out_accuracy, load_judge

    where, (network, left_out) = circumstances(), imagenet()
    for each in left_out:
        say(f"not measured: {each.what}: {each.reason}")
    with ExitStack() as scope:
        setup = setup_of(options.bench, scope, progress)
        check_renderer(setup.facts)
        log = _log(options, where, setup, network)
        say(log.said)
        seen = _seen(log)
        clock = Clock(tune.steps_left(len(seen), options.scenes - len(log.scenes)), say)
        if len(seen) < tune.SCENES:
            _tune(setup, seen, log, clock)
        entries = with_tuned(tune.tuned(seen))
        if not all(number in log.scenes for number in range(options.scenes)):
            _measure(setup, entries, network, log, clock)
        scenes = [log.scenes[number]["scores"] for number in range(options.scenes)]
        document = where | {
            "model": MODEL,
            "size": list(setup.size),
            "backend": options.backend,
            "scenes": options.scenes,
            "judge_accuracy": held_out_accuracy(load_judge(), setup.renders),
            **document_of(entries, scenes, renders(setup, network)),
            "tuning": tune.tuning_of(seen),
            "left_out": [asdict(each) for each in left_out],
        }
    store(document, options.out)
    log.complete()
    return document


def imagenet() -> tuple[Network | None, list[LeftOut]]:
    """The network of the tune; where it is not installed None, and what that leaves out."""
    from fresco_trt.tune.perceptual import FIX, find_weights, load_network

    path = find_weights()
    if path is not None:
        return load_network(path), []
    reason = f"no network trained on ImageNet is installed: {FIX}"
    return None, [LeftOut(what="imagenet_distance", reason=reason)]


def _log(
    options: Options, where: Mapping[str, Any], setup: Setup, network: Network | None
) -> ResultsLog:
    """What was measured so far. Raises IncompatibleOptions for what another request began."""
    header = {key: value for key, value in where.items() if key != "command"}
    header |= {"size": list(setup.size), "backend": options.backend}
    header |= {"imagenet": network is not None}
    header |= inputs_digest(setup.pipeline, sources=SOURCES)
    if differs := differences(options.log, header):
        raise IncompatibleOptions(
            f"{options.log} of an unfinished run that differs in {', '.join(differs)}",
            expected="the same code, weights, machine and arguments but --scenes, to go on with it",
            fix=f"finish that run with its own, or delete {options.log} to measure anew",
        )
    return ResultsLog(options.log, header)


def _seen(log: ResultsLog) -> list[Scores]:
    """The scores of the tune's scenes that the log has."""
    keys = map(_key, range(tune.SCENES))
    return [log.notes[key] for key in keys if key in log.notes]


def _key(number: int) -> str:
    return f"tuning scene {number + 1}"


def _tune(setup: Setup, seen: list[Scores], log: ResultsLog, clock: Clock) -> None:
    """Draw the scenes of the tune that were not ``seen``, and add them to it."""
    from bench.fitness.evaluator import Evaluator

    setup = replace(setup, scenes=tune.SCENES, scenes_seed=tune.SEED)
    with ExitStack() as scope:
        evaluator = Evaluator(setup, tune.every_way(), scope)
        clock.begin(evaluator)
        for number in range(len(seen), tune.SCENES):
            entries = tune.contest(number, seen)
            seen.append(evaluator.line(number, entries)["scores"])
            log.add_note(_key(number), seen[-1])
            clock.tell(f"{_key(number)} of {tune.SCENES}", entries)


def _measure(
    setup: Setup, entries: Sequence[Entry], network: Network | None, log: ResultsLog, clock: Clock
) -> None:
    """Every scene that the log has not."""
    from bench.fitness.evaluator import Evaluator

    with ExitStack() as scope:
        evaluator = Evaluator(setup, entries, scope, network)
        clock.begin(evaluator)
        for number in range(setup.scenes):
            if number not in log.scenes:
                log.add_scene(number, evaluator.line(number, entries))
                clock.tell(f"scene {number + 1} of {setup.scenes}", entries)


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Scenes that every way draws.")] = 200,
    weights: Annotated[
        str | None,
        typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WxH.", show_default="the model's")] = None,
    backend: Annotated[str, typer.Option(help="Engine library.")] = BACKEND,
    out: Annotated[Path, typer.Option(help="JSON; a run's log lies beside it.")] = OUT,
) -> None:
    """Measure what fewer plain steps lose, and say whether that is enough to judge by."""
    options = Options(scenes=scenes, weights=weights, size=size, backend=backend, out=out)
    try:
        with display.progress() as report:
            document = run(options, report, display.note)
    except FrescoError as error:
        display.error(str(error))
        raise typer.Exit(error.exit_code) from error
    print(fitness_table(document), fitness_verdict(document), f"stored {out}", sep="\n\n")
