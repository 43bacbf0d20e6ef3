"""What a tune is asked for, checked: all that can be before an engine is built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import unavailable
from fresco_trt.backends.choosing import choose, this_gpu
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.models.weights import find_transformer
from fresco_trt.plan.facts import check_calibrated
from fresco_trt.plan.sizes import check_size
from fresco_trt.tune.halving import Rounds
from fresco_trt.tune.judge import Judge
from fresco_trt.tune.model_runner import Setup
from fresco_trt.tune.options import name_of
from fresco_trt.tune.perceptual import FIX, find_weights, load_network, required_weights
from fresco_trt.tune.prompts import asked_of
from fresco_trt.tune.scorer import load_scorer
from fresco_trt.tune.state import package_identity, weights_identity

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.tune.options import Options

    Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is looked at: the contest's ``rounds``; how many neighbours its leaders have between
    them in the second one (``near``); how many times each timed plan is drawn (``turns``);
    candidates of each family that engines are built for (``sampled``); and pictures that the
    winner, the control and the many steps draw side by side at the end.
    """

    rounds: Rounds
    near: int
    turns: int
    sampled: int
    beside: int

    @property
    def pictures(self) -> int:
        """Prompts and seeds that are used."""
        return max(self.beside, *(pictures for _, pictures in self.rounds))


FULL = Effort(
    rounds=((160, 2), (40, 6), (12, 14), (5, 32)), near=60, turns=5, sampled=120, beside=8
)
QUICK = Effort(rounds=((32, 1), (10, 3), (4, 8)), near=12, turns=3, sampled=60, beside=2)


def effort_of(options: Options) -> Effort:
    """What the options ask for."""
    return QUICK if options.quick else FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Options with nothing left open. ``header`` tells a run from another, ``engines`` what
    engines are of.
    """

    options: Options
    effort: Effort
    facts: ModelFacts
    size: Size
    setup: Setup
    judge: Judge
    header: dict[str, Any]
    engines: str


def resolve(options: Options, effort: Effort, say: Say) -> Request:
    """Check everything that can be checked before an engine is built; raises as :func:`run`."""
    facts = model_facts(options.model)
    check_calibrated(facts, "a tune")
    size = options.size or facts.default_size
    check_size(facts, size, 1)
    scorer = None if options.scorer is None else load_scorer(options.scorer)
    setup, identity = _setup(options, facts, size, effort, say)
    judge = Judge(network=_network(options, say), scorer=scorer)
    about = setup.backend.describe()
    header = {
        "--model": options.model,
        "--speed": options.speed,
        "--floor": None if options.floor is None else str(options.floor),
        "--scorer": None if options.scorer is None else name_of(options.scorer),
        "--size": list(size),
        "--backend": about.name,
        "metrics": list(judge.metrics),
        "prompts": _digest(setup),
        "rounds": [list(each) for each in effort.rounds],
        "weights": identity,
        "package": package_identity(),
    }
    return Request(
        options=options,
        effort=effort,
        facts=facts,
        size=size,
        setup=setup,
        judge=judge,
        header=header,
        engines=f"{facts.name} {identity} {about.name} {about.version} {setup.precision}",
    )


def _setup(
    options: Options, facts: ModelFacts, size: Size, effort: Effort, say: Say
) -> tuple[Setup, str]:
    """What is drawn with, and what tells its weights from others."""
    chosen = choose(options.backend, None, this_gpu(), lambda about: True)
    for missing in chosen.backend.check():
        raise unavailable(chosen.backend.name, missing)
    if chosen.defaults is not None:
        say(f"tunes with {chosen.defaults}")
    prompts, sources = asked_of(facts, size, options.prompts, effort.pictures)
    given = _given_weights(options, facts)
    components = family_of(facts).components
    pipeline = whole_folder(components.find(options.weights, facts.name))
    components.check(pipeline, facts)
    setup = Setup(
        facts=facts,
        weights=options.weights,
        pipeline=pipeline,
        backend=chosen.backend,
        precision=chosen.precision,
        engines=options.state,
        prompts=prompts,
        sources=sources,
    )
    return setup, weights_identity(pipeline, *given)


def _given_weights(options: Options, facts: ModelFacts) -> list[Path]:
    """The transformer that ``--weights`` names, if it does. Raises as reading it, before anything
    is built, and IncompatibleOptions for random ones.
    """
    if options.weights is None:
        return []
    if options.weights == "random":
        raise IncompatibleOptions(
            "a tune of random weights",
            expected="weights that draw: plans are chosen by their pictures",
            fix="pass --weights with a diffusers folder, or leave it out for the bundled ones",
        )
    return [find_transformer(Path(options.weights), model=facts.name, repository=None)]


def _digest(setup: Setup) -> str:
    digest = hashlib.sha256("\n".join(setup.prompts).encode())
    for source in setup.sources:
        digest.update(source.tobytes())
    return digest.hexdigest()


def _network(options: Options, say: Say) -> Any:
    """The network that says how close pictures look; None, and said so, where it is not here and
    the target can do without.
    """
    if options.floor is not None and options.floor.metric == "perceptual":
        return load_network(required_weights(f"--floor {options.floor}"))
    path = find_weights()
    if path is None:
        say(f"closeness is SSIM alone: the network for how pictures look is not here ({FIX})")
        return None
    return load_network(path)
