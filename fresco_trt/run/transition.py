"""What happens between two stages, as pure functions of tensors and sigmas.

Sits between two stages of :mod:`fresco_trt.run.sampler`: ``(x, v)`` at the end of a stage goes in,
the latents at the next stage's resolution and restart sigma come out. Everything works on unpacked
latents [B,C,(F),H,W] in float32: FLUX packs 2x2 latent pixels into a token, so tokens cannot be
lifted.

With ``x = (1-sigma)*x0 + sigma*noise`` and ``v = noise - x0``, sigma 1 is noise and 0 is clean.
Three noise sources re-noise a lifted clean estimate, ``x' = (1-restart)*lift(x0) + restart*noise``:

- ``field``: the request's own field E at the next scale. If the coarse noise is E's LL band, no
  fresh randomness enters.
- ``parent``: the coarse latents' own noise estimate, completed with E's detail bands (the rule of
  the Krea2 adaptive progressive sampler).
- ``fresh``: a new draw from an explicit generator. The ablation: it breaks the path.

``rewind`` lifts the noisy latents themselves (SPEED, arXiv 2605.18736, with stored details in place
of fresh ones); it fixes the restart sigma, see :func:`rewind`. What a transition does to latents
that keep their resolution is :func:`stay`; :mod:`fresco_trt.run.mixed` puts both together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.plan.schedule import SIGMA_TOLERANCE, rewind_sigma
from fresco_trt.run.noise import NoisePyramid, level_of
from fresco_trt.run.resample import LIFTS, cropped

if TYPE_CHECKING:
    from fresco_trt.plan.stages import Transition


def estimate_x0(x: Tensor, v: Tensor, sigma: float) -> Tensor:
    """Clean estimate ``x - sigma*v``; shapes and dtype of ``x``."""
    return x - sigma * v


def estimate_noise(x: Tensor, v: Tensor, sigma: float) -> Tensor:
    """Noise estimate ``x + (1-sigma)*v``; shapes and dtype of ``x``."""
    return x + (1.0 - sigma) * v


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The flow marginal ``(1-sigma)*x0 + sigma*noise``."""
    return (1.0 - sigma) * x0 + sigma * noise


def rewind(
    x: Tensor, sigma: float, pyramid: NoisePyramid, *, scale: float, scale_next: float
) -> Tensor:
    """Expand the noisy latents orthonormally; the result is at ``rewind_sigma(sigma, ratio)``.

    New bands are the field's stored details times ``sigma``; the noise is then white with std
    ``sigma`` and the clean part has ``1/ratio`` of its amplitude, so the one factor
    ``kappa = r / (1 + (r-1)*sigma)`` (2/(1+sigma) for a doubling) puts both on the flow marginal.
    """
    ratio = ratio_of(scale, scale_next)
    kappa = ratio / (1.0 + (ratio - 1) * sigma)
    return kappa * pyramid.complete(x, scale, scale_next, gain=sigma)


def ratio_of(scale: float, scale_next: float) -> int:
    """How many times finer ``scale_next`` is per side; ``ValueError`` if it is coarser."""
    steps = level_of(scale) - level_of(scale_next)
    if steps < 0:
        raise ValueError(f"scale {scale_next:g} after {scale:g}; expected the same or finer")
    return 1 << steps


def check_transition(transition: Transition, *, scale: float, scale_next: float) -> None:
    """Raise ``ValueError`` for a transition that cannot be applied exactly as it is written.

    The scales are those of the tokens that are expanded, also where others were so before.
    """
    if transition.noise != "rewind":
        return
    if transition.lift != "haar":
        raise ValueError(
            f"lift {transition.lift!r} with noise 'rewind', which has no clean estimate to lift;"
            " expected lift 'haar', the expansion it is"
        )
    lands = rewind_sigma(transition.sigma, ratio_of(scale, scale_next))
    if abs(transition.restart - lands) > SIGMA_TOLERANCE:
        raise ValueError(
            f"restart {transition.restart:g} with noise 'rewind' from sigma {transition.sigma:g};"
            f" expected {lands:g}, the only level that expansion lands on"
        )


def apply_transition(
    transition: Transition,
    x: Tensor,
    v: Tensor,
    pyramid: NoisePyramid,
    *,
    scale: float,
    scale_next: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents at ``scale_next`` and ``transition.restart`` from a stage's end. Inputs are kept.

    ``x`` and ``v`` are float32 [B,C,(F),H,W] on the grid at ``scale``: the latents at
    ``transition.sigma`` and the velocity of the step that led there (after an Euler step its clean
    estimate is the same at both ends). Every token is expanded, whatever the refinements say.
    ``generator`` is for noise ``fresh`` and only for it. When both scales are equal the lift is the
    identity, and ``field`` on the exact path (or ``parent`` anywhere) with ``restart == sigma``
    returns ``x``. Raises ``ValueError`` for a transition that cannot be applied as written, shapes
    that differ from the pyramid's, or a generator that is missing or would be ignored.
    """
    check_transition(transition, scale=scale, scale_next=scale_next)
    check_generator(generator, wanted=transition.noise == "fresh")
    _check_latents(x, v, pyramid, scale)
    if transition.noise == "rewind":
        return rewind(x, transition.sigma, pyramid, scale=scale, scale_next=scale_next)
    ratio = ratio_of(scale, scale_next)
    x0 = LIFTS[transition.lift](estimate_x0(x, v, transition.sigma), ratio)
    x0 = cropped(x0, pyramid.field(scale_next))  # what is lifted of a margin is not in the picture
    if transition.noise == "parent":
        parent = estimate_noise(x, v, transition.sigma)
        noise = pyramid.complete(parent, scale, scale_next)
    else:
        noise = _new_noise(pyramid, scale_next, generator)
    return renoise(x0, noise, transition.restart)


def stay(
    transition: Transition,
    x: Tensor,
    v: Tensor,
    pyramid: NoisePyramid,
    *,
    scale: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents at ``transition.restart`` of what keeps its resolution, the one at ``scale``.

    As :func:`apply_transition`, with nothing to lift: the clean estimate is kept, and the noise is
    the field's, a fresh draw, or (``parent`` and ``rewind``) the latents' own noise estimate.
    """
    check_generator(generator, wanted=transition.noise == "fresh")
    _check_latents(x, v, pyramid, scale)
    if transition.noise in ("parent", "rewind"):
        # renoise(estimate_x0, estimate_noise), collected: exactly x where the restart is sigma.
        return x + (transition.restart - transition.sigma) * v
    noise = _new_noise(pyramid, scale, generator)
    return renoise(estimate_x0(x, v, transition.sigma), noise, transition.restart)


def draws(transition: Transition) -> bool:
    """Whether a transition needs a generator: for fresh noise, or to choose tokens at random."""
    rules = {refinement.rule for refinement in transition.refinements}
    return transition.noise == "fresh" or "random" in rules


def check_generator(generator: torch.Generator | None, *, wanted: bool) -> None:
    """Raise ``ValueError`` unless a generator is given exactly where something is drawn."""
    if wanted and generator is None:
        raise ValueError("a random draw without a generator; expected one, see fresh_generator")
    if not wanted and generator is not None:
        raise ValueError("a generator, but nothing is drawn from it; expected none")


def _check_latents(x: Tensor, v: Tensor, pyramid: NoisePyramid, scale: float) -> None:
    expected = pyramid.field(scale).shape
    if x.shape != expected or v.shape != expected or x.dtype != torch.float32:
        raise ValueError(
            f"latents {x.dtype} {tuple(x.shape)} and velocity {tuple(v.shape)} at scale {scale:g};"
            f" expected float32 {tuple(expected)}"
        )


def _new_noise(pyramid: NoisePyramid, scale: float, generator: torch.Generator | None) -> Tensor:
    """The field at ``scale``, or with a generator (noise ``fresh``) a draw of its shape."""
    field = pyramid.field(scale)
    if generator is None:
        return field
    drawn = torch.randn(
        field.shape, generator=generator, device=generator.device, dtype=torch.float32
    )
    return drawn.to(field.device)
