"""Facts of a FLUX transformer of any depth and width, from its configuration.

Beside ``facts.py``, which has the models that were published. A variant is one of these in other
dimensions; its name spells the difference, in diffusers' own words, so that it says all there is:
``flux:num_layers=8`` is FLUX.1-dev with 8 double-stream blocks. Presets are those of the model that
it is named after, which nobody has searched for it; ``presets_of`` says whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.config import TRANSFORMER, transformer_config
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_FACTS
from fresco_trt.models.flux.layers import graph_parameters
from fresco_trt.models.weights import read_config
from fresco_trt.plan.editing import SELECTIVE_PRESET
from fresco_trt.plan.facts import ModelFacts

VAE_SCALE = "vae_scale"
_GENERAL = ("quality", "balanced", "fast", "turbo", SELECTIVE_PRESET)
"""Presets whose steps suit any size of model; others are points of one model's budget."""

_GUIDANCE = FLUX_DEV.guidance_default


class FluxVariants:
    """A :class:`~fresco_trt.models.family.FamilyVariants`."""

    def facts(self, base: ModelFacts, config: Mapping[str, Any]) -> ModelFacts:
        """As in the protocol."""
        own = _settings(base)
        config = dict(config)
        for name, value in (
            ("patch_size", 1),
            ("out_channels", config.get("in_channels", base.in_channels)),
        ):
            found = config.pop(name, None)
            if found not in (None, value):
                raise _refused(base, f"{name}={found!r}", f"{name}={value!r}")
        unknown = [name for name in config if name not in own]
        if unknown:
            raise _refused(base, f"{unknown[0]}={config[unknown[0]]!r}", f"one of {', '.join(own)}")
        asked = {**own, **{name: _plain(value) for name, value in config.items()}}
        for problem, expected in _problems(asked):
            raise _refused(base, problem, expected)
        differs = {name: value for name, value in asked.items() if value != own[name]}
        return _described(base, asked, differs) if differs else base


def check_config(folder: Path, facts: ModelFacts) -> None:
    """Raise IncompatibleOptions, which names every dimension in which a stored configuration
    differs from the model's facts, and the model that has these.
    """
    stored = read_config(folder)
    wanted = transformer_config(facts)
    differs = [
        f"{key} {stored[key]} (the model has {value})"
        for key, value in wanted.items()
        if key in stored and key != "out_channels" and stored[key] != value
    ]
    fix = "pass the weights that belong to --model, or the --model they belong to"
    kind = stored.get("_class_name", TRANSFORMER)
    if kind != TRANSFORMER:
        differs.insert(0, f"class {kind}")
    elif differs:
        fix = f"pass --model {_name_of(stored)}, or the weights that belong to --model"
    if differs:
        raise IncompatibleOptions(
            f"the weights at {folder} have {', '.join(differs)}",
            expected=f"a {TRANSFORMER} with the dimensions of {facts.name}",
            fix=fix,
        )


def _name_of(stored: Mapping[str, Any]) -> str:
    """The model of a stored configuration: one that is listed, or else a variant."""
    known = {key: stored[key] for key in transformer_config(FLUX_DEV) if key in stored}
    for facts in FLUX_FACTS:
        if FluxVariants().facts(facts, known) is facts:
            return facts.name
    return FluxVariants().facts(FLUX_DEV, known).name


def _described(
    base: ModelFacts, asked: Mapping[str, Any], differs: Mapping[str, Any]
) -> ModelFacts:
    scale, channels = asked[VAE_SCALE], asked["in_channels"] // base.patch**2
    side = [edge // base.vae_scale * scale for edge in base.default_size]
    same_latents = (channels, scale) == (base.latent_channels, base.vae_scale)
    guided = asked["guidance_embeds"]
    described = replace(
        base,
        name=f"{base.name}:{','.join(f'{key}={_spelt(each)}' for key, each in differs.items())}",
        presets_of=base.name,
        presets={name: base.presets[name] for name in base.presets if name in _GENERAL},
        double_blocks=asked["num_layers"],
        single_blocks=asked["num_single_layers"],
        heads=asked["num_attention_heads"],
        head_dim=asked["attention_head_dim"],
        hidden=asked["num_attention_heads"] * asked["attention_head_dim"],
        rope_axes=tuple(asked["axes_dims_rope"]),
        text_dim=asked["joint_attention_dim"],
        pooled_dim=asked["pooled_projection_dim"],
        in_channels=asked["in_channels"],
        latent_channels=channels,
        guidance=guided,
        guidance_default=(base.guidance_default or _GUIDANCE) if guided else None,
        vae_scale=scale,
        default_size=(side[0], side[1]),
        max_pixels=base.max_pixels // base.vae_scale**2 * scale**2,
        spectrum=base.spectrum if same_latents else None,
    )
    return replace(described, parameters=graph_parameters(described).whole)


def _settings(facts: ModelFacts) -> dict[str, Any]:
    """What variants differ in, as diffusers calls it, and the VAE's pixels along a latent pixel."""
    config = transformer_config(facts)
    fixed = ("patch_size", "out_channels")
    return {name: value for name, value in config.items() if name not in fixed} | {
        VAE_SCALE: facts.vae_scale
    }


def _problems(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What no FLUX transformer has, as given and expected."""
    depths = ("num_layers", "num_single_layers")
    apart = ("axes_dims_rope", "guidance_embeds")
    for name, value in asked.items():
        least = 0 if name in depths else 1
        if name not in apart and not (type(value) is int and value >= least):
            yield f"{name}={value!r}", f"a whole number from {least}"
    if not isinstance(asked["guidance_embeds"], bool):
        yield f"guidance_embeds={asked['guidance_embeds']!r}", "true or false"
    axes, width = asked["axes_dims_rope"], asked["attention_head_dim"]
    even = isinstance(axes, list) and all(type(each) is int and each % 2 == 0 for each in axes)
    if not even or len(axes) != 3 or min(axes) < 2 or sum(axes) != width:
        told = f"axes_dims_rope={_spelt(axes)} with attention_head_dim={width}"
        yield told, "three even widths that sum to the head's, like 16+56+56"
    if not any(asked[name] for name in depths):
        yield "a transformer without blocks", "at least one block of either kind"
    if asked["in_channels"] % 4:
        yield f"in_channels={asked['in_channels']}", "four for each latent channel"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _refused(base: ModelFacts, given: str, expected: str) -> IncompatibleOptions:
    return IncompatibleOptions(
        f"{given} of a model like {base.name}",
        expected=expected,
        fix=f"write the model like {base.name}:num_layers=8,num_single_layers=38",
    )
