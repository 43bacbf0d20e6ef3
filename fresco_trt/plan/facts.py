"""What planning needs to know about a model: its dimensions, limits and presets, as numbers.

A value of this kind is the only thing a model hands to the plan; see ``models/*_facts.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.grid import Size
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.schedule import ShiftRule, dynamic_mu
from fresco_trt.plan.spectrum import Spectrum


def check_calibrated(facts: ModelFacts, given: str) -> None:
    """Raise IncompatibleOptions for what is ``given`` of a model that nothing is measured of."""
    if not facts.calibrated:
        raise IncompatibleOptions(
            f"{given} of {facts.name}",
            expected="a model of the FLUX family: nothing is measured of this one yet",
            fix="pass --model flux, or plan, build and draw with this one without",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """One model's numbers. Raises ValueError where they contradict one another.

    ``hidden`` = ``heads`` x ``head_dim``; ``in_channels`` is the width of a packed token,
    ``latent_channels`` x ``patch``^2; ``rope_axes`` sum to ``head_dim``; ``text_tokens`` is the
    text length engines are built for; ``vae_scale`` is picture pixels along a latent pixel;
    ``parameters`` counts the transformer alone; ``high_precision`` has patterns of the linear
    layers that are never quantised. ``guidance_default`` is None exactly when the model takes no
    guidance input; ``shift`` is None when its sigmas are shifted by ``fixed_shift`` at every size
    (1: not at all); ``spectrum`` is that of its
    latents, or None while it was not measured. Sizes are (width, height) in picture pixels. A
    clip's frames are compressed too: of ``max_frames`` at most, the first is a latent frame of its
    own and each ``temporal_scale`` after it are one. ``references`` is how many reference pictures
    stand behind the target's tokens, each on the target's own grid; ``references_at_zero`` says
    that they are modulated as at sigma 0, whatever the step's is. ``presets`` maps a preset's
    name and a number of stages to a preset; ``presets_of`` names the model that they were made for,
    where that is another one. ``true_cfg_default`` is the scale of classifier-free guidance by a
    second pass without the prompt, None for a model that is drawn without; ``text_masked`` says
    that attention does not see the padding of a text, which passes ``text_layers`` blocks of its
    own before the others, and ``text_biased`` that engines take what hides it as a bias, so that a
    stage may amplify the rest. ``sparse_attention`` says that attention may be over chosen blocks
    of keys. With ``margins`` a grid may be one token larger than half of the next finer one, and
    stand out over it. ``calibrated`` is False for a model that nothing can be measured of: no
    codes, no basis of a cache. ``caches`` has by its name what the papers' tables of this model
    have of a cache, in one stage. ``tuned`` says that the presets were chosen by what the model's
    own weights draw with them.
    """

    name: str
    family: str
    hidden: int
    heads: int
    head_dim: int
    double_blocks: int
    single_blocks: int
    mlp_ratio: int
    in_channels: int
    text_dim: int
    pooled_dim: int
    text_tokens: int
    rope_axes: tuple[int, ...]
    guidance: bool
    guidance_default: float | None
    default_steps: int
    vae_scale: int
    latent_channels: int
    patch: int
    default_size: Size
    max_pixels: int
    parameters: int
    high_precision: tuple[str, ...]
    shift: ShiftRule | None
    spectrum: Spectrum | None
    presets: Mapping[str, Mapping[int, Preset]] = field(hash=False)
    temporal_scale: int = 1
    max_frames: int = 1
    references: int = 0
    fixed_shift: float = 1.0
    presets_of: str | None = None
    references_at_zero: bool = False
    true_cfg_default: float | None = None
    text_masked: bool = False
    text_layers: int = 0
    text_biased: bool = False
    sparse_attention: bool = False
    margins: bool = False
    calibrated: bool = True
    caches: Mapping[str, CacheConfig] = field(default_factory=dict, hash=False)
    tuned: bool = False

    def __post_init__(self) -> None:
        contradictions = {
            "hidden is not heads x head_dim": self.hidden != self.heads * self.head_dim,
            "rope_axes do not sum to head_dim": sum(self.rope_axes) != self.head_dim,
            "in_channels is not latent_channels x patch^2": (
                self.in_channels != self.latent_channels * self.patch**2
            ),
            "guidance and guidance_default disagree": (
                self.guidance != (self.guidance_default is not None)
            ),
            "margins need a patch that halves": self.margins and self.patch % 2 == 1,
            "shift and fixed_shift are both given": (
                self.shift is not None and self.fixed_shift != 1.0
            ),
        }
        for problem, holds in contradictions.items():
            if holds:
                raise ValueError(f"{self.name}: {problem}")

    @property
    def blocks(self) -> int:
        """Transformer blocks of both kinds."""
        return self.double_blocks + self.single_blocks

    @property
    def text_choices(self) -> tuple[int, ...]:
        """Text tokens that a stage may take: all, half or a quarter of them, ascending; all, where
        the padding is hidden by a mask.
        """
        if self.text_masked:
            return (self.text_tokens,)
        halved = (self.text_tokens / parts for parts in (4, 2, 1))
        return tuple(int(count) for count in halved if count.is_integer())

    @property
    def passes(self) -> int:
        """Passes of the network a step, as the model is drawn unless asked otherwise."""
        return 1 if self.true_cfg_default is None else 2

    @property
    def stage_counts(self) -> tuple[int, ...]:
        """Numbers of stages, taken in turn, that some preset has a schedule for, ascending."""
        schedules = [each for named in self.presets.values() for each in named.items()]
        return tuple(sorted({count for count, preset in schedules if preset.edit is None}))

    def shift_factor(self, tokens: int) -> float:
        """Shift factor h of a picture of ``tokens`` full-resolution image tokens."""
        if self.shift is None:
            return self.fixed_shift
        return math.exp(dynamic_mu(tokens, self.shift))
