"""The light half of the public calls: planning, tuning, and where the bundled models are.

Beside the data path: names to numbers and names to folders. ``build`` and ``FrescoPipeline``, which
need torch, stay in their own files; the package's ``__init__`` puts all of them under one roof.
What a call needs it imports itself: whoever imports the package may want another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.errors import WeightsNotFound
from fresco_trt.plan.arguments import (
    finite,
    flag,
    optional,
    place,
    preset_of,
    python_door,
    size_of,
    whole,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fresco_trt.plan.config import CacheConfig, PresetConfig
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan


@python_door
def plan(
    model: str,
    *,
    stages: int,
    preset: PresetConfig | str = "balanced",
    size: Size | str | None = None,
    steps: int | None = None,
    delta: float | None = None,
    shift: float | None = None,
    cache: CacheConfig | str = "none",
) -> StagePlan:
    """The stage plan of a model: grids, sigmas and transitions, before anything is built.

    ``model`` is a model's name, or that of one like it in other dimensions, in diffusers' words:
    "flux:num_layers=8". Such a one borrows the presets of the model that it is named after.
    ``size`` is (width, height) in picture pixels, or "512x384"; by default the model's own. A
    one-stage plan is the plain sampler, with ``steps`` steps if given, else as many as the preset
    has. With more stages the preset decides every step, and ``steps`` is checked but changes
    nothing: it is the baseline that ``fresco-trt plan`` compares the cost with. ``delta`` moves the
    preset's switches to where SPEED's spectral criterion puts them at that tolerance (arXiv
    2605.18736). ``shift`` replaces the time shift's factor in every stage (e^mu; 3.16 is FLUX.1's
    own at 1024x1024). ``cache`` says which steps are skipped and what predicts them: a
    :class:`~fresco_trt.plan.config.CacheConfig` or its spelling, "hicache,interval=3".

    ``preset`` may spell its changes, "balanced,delta=0.05", in place of ``delta`` and ``shift``;
    "balanced,solver=dpmpp_2m" takes the steps by another solver, and
    "turbo,text_tokens=128+256+512" gives coarse stages less of the text's padding.

    Raises UnknownModel, UnknownPreset, UnsupportedStages, UnsupportedSize, InvalidArgument for an
    argument of another type, PlanError for a wrong ``steps``, ``delta``, ``shift`` or cache, and
    IncompatibleOptions for a ``delta`` with a model whose spectrum is not known, a preset with
    mixed stages, or one stage, for a solver that would change no step, and for options of a cache
    that would skip nothing or that nothing would read; all are FrescoErrors.
    """
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.making import make_plan

    return make_plan(
        model_facts(word("model", model)),
        stages=whole("stages", stages),
        preset=preset_of(preset, delta, shift),
        size=optional(size_of, "size", size),
        steps=optional(whole, "steps", steps),
        cache=cache,
    )


@python_door
def tune(
    model: str,
    *,
    speed: float | None = None,
    floor: str | None = None,
    weights: str | None = None,
    prompts: str | Path | None = None,
    scorer: str | Callable[..., Any] | None = None,
    size: Size | str | None = None,
    backend: str | None = None,
    quick: bool = False,
    out: str | Path = "plan.json",
) -> StagePlan:
    """The best plan for a model's weights on this machine, among every kind of plan there is.

    Either ``speed`` says how many times less time than the plain pipeline a picture may take, and
    the closest plan is found; or ``floor``, "ssim=0.9", how close it has to be, and the fastest is.
    Closeness is to the model's own many-step picture of the same prompt and seed: "ssim", and
    "perceptual" by an ImageNet network (extra ``tune``). ``scorer`` adds a "score": a function of a
    PIL picture and its prompt that gives a number, or "module:function"; one unit of it weighs as
    much as one of SSIM. ``prompts`` is a text file, a prompt a line; by default what the model is
    calibrated on. ``weights``, ``size`` and ``backend`` are as those of :func:`build`. ``quick``
    compares fewer candidates on fewer pictures.

    The plan is written to ``out``, as ``fresco-trt plan --json`` writes it, and a table, a report
    and the engines beside it, in ``<out>.tune``. A call that was killed goes on where it was when
    it is made again. Plain sampling with few steps competes to the end, and wins where it is best.

    Raises InvalidArgument for an argument of another type, PlanError for a wrong target or scorer,
    IncompatibleOptions for two targets or none, and where an unfinished run was asked for something
    else, CalibrationError for prompts that cannot be read, WeightsNotFound, BackendUnavailable,
    OutputNotWritable, ScorerFailed, and TargetNotReached for a target that nothing reaches, when
    the best plan there is was written; all are FrescoErrors.
    """
    import logging

    from fresco_trt.backends.base import silent
    from fresco_trt.tune.job import run
    from fresco_trt.tune.options import Options, parse_floor

    options = Options(
        model=word("model", model),
        speed=optional(finite, "speed", speed),
        floor=None if floor is None else parse_floor(word("floor", floor)),
        weights=None if weights is None else str(place("weights", weights)),
        prompts=optional(place, "prompts", prompts),
        scorer=scorer if scorer is None or callable(scorer) else word("scorer", scorer),
        size=optional(size_of, "size", size),
        backend=optional(word, "backend", backend),
        quick=flag("quick", quick),
        out=place("out", out),
    )
    return run(options, silent, logging.getLogger("fresco_trt.tune").info).plan


@python_door
def pretrained(name: str) -> Path:
    """The folder of a model that ships with the package; diffusers' ``from_pretrained`` reads it.

    A model that ships as a transformer over another's parts is put together, once, in the user's
    cache folder or where FRESCO_TRT_CACHE says.

    Raises UnknownModel for a name that no model has, WeightsNotFound for a model whose weights are
    not bundled, OutputNotWritable or DiskFull where the folder cannot be put together.
    """
    from fresco_trt.models.registry import model_facts, model_names
    from fresco_trt.models.weights import bundled_folder

    folder = bundled_folder(model_facts(word("name", name)).name)
    if folder.is_dir():
        from fresco_trt.models.pretrained import whole_folder

        return whole_folder(folder)
    bundled = [each for each in model_names() if bundled_folder(each).is_dir()]
    raise WeightsNotFound(
        f"the weights of {name} do not ship with the package (looked at {folder})",
        expected=f"a bundled model: {', '.join(bundled) or 'this installation has none'}",
        fix="pass one of those, or load that model from the hub or from your own folder",
    )
