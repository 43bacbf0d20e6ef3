"""Whether a pipeline folder is one that a FLUX model's engines draw with: asked by a build.

Between a folder that was found and the bundle that takes it over. What would be copied and hashed
is read here, in its configurations: it is what plan and engines take for granted, or it is refused.
Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, error_context
from fresco_trt.files.canonical_json import clipped
from fresco_trt.models.flux.diffusers import FluxDriver
from fresco_trt.models.parts import check_files, refuse_unread, stored

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

_PIPELINES = ("FluxPipeline", "FluxKontextPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
"""Pipelines of diffusers' with these parts and no others."""

_CLASSES = {
    "scheduler": FluxDriver.scheduler,
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
    "vae": "AutoencoderKL",
}


def check_folder(folder: Path, facts: ModelFacts) -> None:
    """Raise for a folder of parts that are not this model's.

    IncompatibleOptions for one of another pipeline, a scheduler that shifts the sigmas as no plan
    of the model does, encoders of other widths and a decoder of another scale; UnsupportedWeights
    for parts that are quantised or not finite and for files that nobody would read;
    WeightsNotFound for a part without weights or configuration.
    """
    with error_context(f"the pipeline folder {folder}"):
        for problem, expected in _problems(folder, facts):
            raise IncompatibleOptions(
                clipped(problem, 200),
                expected=expected,
                fix="pass a folder of the model's own parts, or the model that these belong to",
            )
        _check_scheduler(folder / "scheduler" / "scheduler_config.json", facts)
        for part in ("text_encoder", "text_encoder_2", "vae"):
            check_files(folder / part)
        for part in ("scheduler", "tokenizer", "tokenizer_2"):
            refuse_unread(folder / part)


# --- configurations ---------------------------------------------------------------------------


def _problems(folder: Path, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    """What is another model's, and what would have been its own."""
    index = stored(folder / "model_index.json")
    kind = index.get("_class_name", _PIPELINES[0])
    if kind not in _PIPELINES:
        yield f"parts of the pipeline {kind}", f"those of a {_PIPELINES[0]}"
    for part, wanted in _CLASSES.items():
        named = index.get(part, [None, wanted])  # a library and a class
        if not isinstance(named, list) or wanted not in named:
            told = named[-1] if isinstance(named, list) and named else named
            yield f"{part} is {told}", wanted
    for part, name, dimension in (
        ("text_encoder", "hidden_size", facts.pooled_dim),
        ("text_encoder_2", "d_model", facts.text_dim),
    ):
        found = stored(folder / part / "config.json").get(name)
        if found != dimension:
            yield f"{part} with {name}={found!r}", f"{dimension}, as {facts.name} has"
    yield from _decoder_problems(stored(folder / "vae" / "config.json"), facts)


def _decoder_problems(vae: Mapping[str, Any], facts: ModelFacts) -> Iterator[tuple[str, str]]:
    kind = vae.get("_class_name", _CLASSES["vae"])
    if kind != _CLASSES["vae"]:
        yield f"vae is {kind}", _CLASSES["vae"]
    levels, channels = vae.get("block_out_channels", [0]), vae.get("latent_channels", 4)
    scale = 2 ** (min(len(levels), 32) - 1) if isinstance(levels, list) else levels
    if scale != facts.vae_scale:
        yield f"vae enlarges by {scale}", f"{facts.vae_scale}, as {facts.name} has"
    if channels != facts.latent_channels:
        yield f"vae with latent_channels={channels!r}", f"{facts.latent_channels}"


def _check_scheduler(path: Path, facts: ModelFacts) -> None:
    """The sigmas of a plan are the model's: a scheduler that gives others would not be heard."""
    settings = stored(path)
    kind = settings.get("_class_name", _CLASSES["scheduler"])
    own = facts.shift or facts.fixed_shift
    found = kind
    if kind == _CLASSES["scheduler"]:
        given = FluxDriver().scheduled(facts, settings)
        found = given.shift or given.fixed_shift
    if found != own:
        raise IncompatibleOptions(
            f"a scheduler that shifts the sigmas by {found}",
            expected=f"{own}, as the plans of {facts.name} do",
            fix="put the model's own scheduler back; a preset takes a shift of its own",
        )
