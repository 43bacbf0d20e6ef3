"""Facts of the FLUX family: the bundled demo and its student, and FLUX.1-dev, -schnell, -Kontext.

Dimensions are those of the published transformer configs. Presets of the same name cost about the
same at any number of stages, so that a one-stage preset is the plain sampler at equal compute.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from fresco_trt.plan.editing import SELECTIVE_PRESET, EditPlan
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.refinement import EDITED
from fresco_trt.plan.schedule import ShiftRule
from fresco_trt.plan.spectrum import FLUX_1, Spectrum

# At least 3x, 5x, 8x and 12x fewer FLOPs than 50 full steps: what a search found best at these
# budgets (bench/results/flux-tiny-<K>stage-presets.json). One stage is the plain sampler.
_TINY_PRESETS = {
    "quality": {
        1: Preset(steps=(16,)),
        2: Preset(
            steps=(7, 15), switch=(0.984,), lift="nearest", shift=(4.95, 1.65), solver="multistep"
        ),
        3: Preset(steps=(6, 10, 12), switch=(0.973, 0.949), lift="nearest", solver="multistep"),
    },
    "balanced": {
        1: Preset(steps=(10,)),
        2: Preset(
            steps=(1, 9),
            switch=(0.969,),
            lift="haar",
            noise="parent",
            shift=(20.09, 4.95),
            solver="multistep",
        ),
        3: Preset(
            steps=(5, 5, 8),
            switch=(0.953, 0.935),
            restart="same",
            noise="parent",
            solver="multistep",
        ),
    },
    "fast": {
        1: Preset(steps=(6,)),
        2: Preset(steps=(1, 6), switch=(0.969,), lift="haar", shift=(1.65, 4.95)),
        3: Preset(steps=(7, 7, 4), switch=(0.953, 0.865), lift="nearest", noise="parent"),
    },
    "turbo": {
        1: Preset(steps=(4,)),
        2: Preset(
            steps=(4, 3),
            switch=(0.933,),
            restart="same",
            lift="haar",
            noise="parent",
            shift=(20.09, 3.16),
        ),
        3: Preset(steps=(8, 6, 2), switch=(0.852, 0.74), noise="parent"),
    },
}

# Against 4 full steps: 1.2x, 1.8x, 2.7x and 3x with stages. By hand, not searched: the last stage
# of two begins at sigma 0.9045, where the second of the 4 plain steps does, so that 3 steps from
# there are the strides that were learnt. Of two transitions each number of stages has the one that
# looked better on 4 scenes, which is no measurement.
_LEARNT = 0.9045


def _two(*steps: int) -> Preset:
    return Preset(steps=steps, switch=(_LEARNT,), restart="same", lift="haar", noise="parent")


def _three(*steps: int) -> Preset:
    return Preset(steps=steps, switch=(0.98, _LEARNT), lift="haar", noise="rewind")


_TINY_TURBO_PRESETS = {
    "quality": {1: Preset(steps=(4,)), 2: _two(1, 3), 3: _three(1, 1, 3)},
    "balanced": {1: Preset(steps=(3,)), 2: _two(1, 2), 3: _three(1, 1, 2)},
    "fast": {1: Preset(steps=(2,)), 2: _two(2, 1), 3: _three(1, 2, 1)},
    "turbo": {1: Preset(steps=(1,)), 2: _two(1, 1), 3: _three(1, 1, 1)},
}

# Against 50 full steps: 3x, 5x, 7x, 10x. The switches are where SPEED's spectral criterion puts
# them for this VAE (A 203.615, beta 1.9155) at 1024x1024, delta 0.02, 0.05, 0.1 and 0.2.
_DEV_PRESETS = {
    "quality": {
        1: Preset(steps=(17,)),
        2: Preset(steps=(16, 12), switch=(0.803,)),
        3: Preset(steps=(10, 12, 12), switch=(0.909, 0.803)),
    },
    "balanced": {
        1: Preset(steps=(10,)),
        2: Preset(steps=(10, 7), switch=(0.718,)),
        3: Preset(steps=(6, 8, 7), switch=(0.862, 0.718)),
    },
    "fast": {
        1: Preset(steps=(7,)),
        2: Preset(steps=(7, 5), switch=(0.638,)),
        3: Preset(steps=(4, 5, 5), switch=(0.814, 0.638)),
    },
    "turbo": {
        1: Preset(steps=(5,)),
        2: Preset(steps=(7, 3), switch=(0.544,)),
        3: Preset(steps=(4, 5, 3), switch=(0.751, 0.544)),
    },
}


def _fresco(steps: tuple[int, int, int], share: float, switch: tuple[float, float]) -> Preset:
    """A point of Fresco's, with what was published of the method (arXiv 2601.07462): coarse, mixed
    and full stage, the tokens whose latents varied least refined, and the Hadamard expansion with
    the noise of one field, which is the rewind over Haar."""
    return Preset(
        steps=steps,
        switch=switch,
        lift="haar",
        noise="rewind",
        refine=((("converged-latent", share),), ()),
    )


# Named by their steps. Steps and shares are those that give the published FLOPs (1295.99, 788.03
# and 486.85 T; the paper prints neither), the switches RALU's for such budgets (arXiv 2507.08422).
_FRESCO_PRESETS = {
    "fresco-30": {3: _fresco((10, 10, 10), 0.25, (0.7, 0.55))},
    "fresco-18": {3: _fresco((5, 7, 6), 0.25, (0.7, 0.55))},
    "fresco-11": {3: _fresco((5, 2, 4), 0.4, (0.8, 0.7))},
}

# Four steps leave little to divide: against 4 full steps 1.1x, 1.5x, 1.7x, 3x. The switches are
# those RALU uses on this model (arXiv 2507.08422, N = 1, 1, 2).
_SCHNELL_PRESETS = {
    "quality": {
        1: Preset(steps=(4,)),
        2: Preset(steps=(2, 3), switch=(0.7,)),
        3: Preset(steps=(2, 2, 3), switch=(0.7, 0.55)),
    },
    "balanced": {
        1: Preset(steps=(3,)),
        2: Preset(steps=(2, 2), switch=(0.7,)),
        3: Preset(steps=(1, 2, 2), switch=(0.7, 0.55)),
    },
    "fast": {
        1: Preset(steps=(2,)),
        2: Preset(steps=(1, 2), switch=(0.7,)),
        3: Preset(steps=(1, 1, 2), switch=(0.7, 0.55)),
    },
    "turbo": {
        1: Preset(steps=(1,)),
        2: Preset(steps=(1, 1), switch=(0.7,)),
        3: Preset(steps=(1, 1, 1), switch=(0.7, 0.55)),
    },
}

# Embedders, time and guidance, modulation, and what follows the last block: a few percent of the
# work. nvidia-modelopt's own FLUX example leaves the same layers alone.
_HIGH_PRECISION = (
    "x_embedder",
    "context_embedder",
    "time_text_embed.*",
    "*norm*.linear",
    "proj_out",
)

FLUX_TINY = ModelFacts(
    name="flux-tiny",
    family="flux",
    hidden=192,
    heads=6,
    head_dim=32,
    double_blocks=2,
    single_blocks=4,
    mlp_ratio=4,
    in_channels=16,
    text_dim=128,
    pooled_dim=128,
    text_tokens=128,
    rope_axes=(4, 14, 14),
    guidance=True,
    guidance_default=3.5,
    default_steps=50,
    vae_scale=4,
    latent_channels=4,
    patch=2,
    default_size=(256, 256),
    max_pixels=512 * 512,
    parameters=5_226_384,
    # With queries and keys in FP8 too the balanced plan at three stages keeps a mean SSIM of 0.950
    # on the calibration prompts, without 0.959. As much is won by keeping the last block, but then
    # its code is no longer that of the other blocks.
    high_precision=(*_HIGH_PRECISION, "*.attn.to_[qk]", "*.attn.add_[qk]_proj"),
    shift=ShiftRule(base_shift=0.5, max_shift=1.15, base_tokens=64, max_tokens=1024),
    spectrum=Spectrum(
        amplitude=289.386,
        beta=2.50263,
        source="calibration/flux-tiny-spectrum.json: 512 drawn scenes at 256x256",
        side=64,
    ),
    presets=_TINY_PRESETS,
    tuned=True,
)

# A student of FLUX_TINY (demo/distil.py), over its encoders and codec. Its sigmas follow the same
# rule: at four steps they are the strides that it learnt.
FLUX_TINY_TURBO = replace(
    FLUX_TINY,
    name="flux-tiny-turbo",
    default_steps=4,
    presets=_TINY_TURBO_PRESETS,
    tuned=False,
)

FLUX_DEV = ModelFacts(
    name="flux",
    family="flux",
    hidden=3072,
    heads=24,
    head_dim=128,
    double_blocks=19,
    single_blocks=38,
    mlp_ratio=4,
    in_channels=64,
    text_dim=4096,
    pooled_dim=768,
    text_tokens=512,
    rope_axes=(16, 56, 56),
    guidance=True,
    guidance_default=3.5,
    default_steps=50,
    vae_scale=8,
    latent_channels=16,
    patch=2,
    default_size=(1024, 1024),
    max_pixels=2048 * 2048,
    parameters=11_901_408_320,
    high_precision=_HIGH_PRECISION,
    shift=ShiftRule(base_shift=0.5, max_shift=1.15, base_tokens=256, max_tokens=4096),
    spectrum=FLUX_1,
    presets=_DEV_PRESETS | _FRESCO_PRESETS,
)

FLUX_SCHNELL = replace(
    FLUX_DEV,
    name="flux-schnell",
    text_tokens=256,
    guidance=False,
    guidance_default=None,
    default_steps=4,
    parameters=11_891_178_560,
    shift=None,
    presets=_SCHNELL_PRESETS,
)


def _selective(
    steps: tuple[int, int], shares: tuple[float, ...], edit: EditPlan, restart: float = 0.75
) -> Preset:
    """A draft, a mixed stage for each share of the tokens that an edit may touch, and all of them;
    ``shares`` ascend. ``steps`` are the draft's, and those of whatever follows it.
    """
    parts = (now - before for before, now in pairwise((0.0, *shares)))
    draft, each = steps
    return Preset(
        steps=(draft, *(each,) * (len(shares) + 1)),
        switch=(0.0,) * (len(shares) + 1),
        restart=(restart,) * (len(shares) + 1),
        refine=(*(((EDITED, part),) for part in parts), ()),
        edit=edit,
    )


_SHARES = ((0.25,), (0.125, 0.25), (0.125, 0.25, 0.5))
"""How much of a picture the mixed stages have room for, of three, four and five stages."""

# Edits a picture, whose tokens stand behind the target's: 3x, 5x, 7x and 10x against 50 steps that
# have both. Attention makes full steps dearer there, so plans have more of them than FLUX.1-dev's;
# the switches are the same.
_KONTEXT_PRESETS = {
    "quality": {
        1: Preset(steps=(17,)),
        2: Preset(steps=(16, 13), switch=(0.803,)),
        3: Preset(steps=(10, 12, 13), switch=(0.909, 0.803)),
    },
    "balanced": {
        1: Preset(steps=(10,)),
        2: Preset(steps=(9, 8), switch=(0.718,)),
        3: Preset(steps=(6, 7, 8), switch=(0.862, 0.718)),
    },
    "fast": {
        1: Preset(steps=(7,)),
        2: Preset(steps=(9, 5), switch=(0.638,)),
        3: Preset(steps=(4, 7, 5), switch=(0.814, 0.638)),
    },
    "turbo": {
        1: Preset(steps=(5,)),
        2: Preset(steps=(9, 3), switch=(0.544,)),
        3: Preset(steps=(5, 7, 3), switch=(0.751, 0.544)),
    },
    # A whole edit drawn small, then only the tokens that it touches: at most an eighth, a quarter
    # or half of the picture. The threshold is SpotEdit's for this VAE (arXiv 2512.22323, code).
    SELECTIVE_PRESET: {
        len(shares) + 2: _selective(
            (10, 6), shares, EditPlan(discrepancy="features", threshold=0.2)
        )
        for shares in _SHARES
    },
}

FLUX_KONTEXT = replace(
    FLUX_DEV, name="flux-kontext", guidance_default=2.5, references=1, presets=_KONTEXT_PRESETS
)


def _tiny_selective(
    draft: int, each: int, threshold: float, restart: float = 0.75
) -> dict[int, Preset]:
    """As ``flux-kontext`` has them. A token of the draft is 16 of 128 pixels wide: none around an
    edited one is edited too.
    """
    edit = EditPlan(discrepancy="features", threshold=threshold, dilation=0)
    return {len(shares) + 2: _selective((draft, each), shares, edit, restart) for shares in _SHARES}


# The demo model taught to edit (training/kontext.py), at the sizes and text lengths that it was
# shown. Against 28 full steps: 3x, 5x, 7x and 9x. By hand, not searched: the reference tells the
# layout at once, so stages switch later than those of a model that draws from nothing.
_TINY_KONTEXT_PRESETS = {
    "quality": {
        1: Preset(steps=(9,)),
        2: Preset(steps=(8, 7), switch=(0.8,)),
        3: Preset(steps=(4, 6, 7), switch=(0.9, 0.75)),
    },
    "balanced": {
        1: Preset(steps=(6,)),
        2: Preset(steps=(5, 4), switch=(0.8,)),
        3: Preset(steps=(3, 5, 4), switch=(0.9, 0.75)),
    },
    "fast": {
        1: Preset(steps=(4,)),
        2: Preset(steps=(4, 3), switch=(0.75,)),
        3: Preset(steps=(2, 3, 3), switch=(0.9, 0.7)),
    },
    "turbo": {
        1: Preset(steps=(3,)),
        2: Preset(steps=(4, 2), switch=(0.7,)),
        3: Preset(steps=(2, 3, 2), switch=(0.85, 0.65)),
    },
    SELECTIVE_PRESET: _tiny_selective(6, 4, 0.3),
    f"{SELECTIVE_PRESET}-fast": _tiny_selective(4, 2, 0.3),
    f"{SELECTIVE_PRESET}-turbo": _tiny_selective(2, 1, 0.3, restart=0.6),
}

FLUX_TINY_KONTEXT = replace(
    FLUX_TINY,
    name="flux-tiny-kontext",
    text_tokens=32,
    guidance_default=1.0,
    default_steps=28,
    default_size=(128, 128),
    max_pixels=128 * 128,
    spectrum=None,
    references=1,
    presets=_TINY_KONTEXT_PRESETS,
    tuned=False,
)

FLUX_FACTS = (
    FLUX_TINY,
    FLUX_TINY_TURBO,
    FLUX_TINY_KONTEXT,
    FLUX_DEV,
    FLUX_SCHNELL,
    FLUX_KONTEXT,
)
