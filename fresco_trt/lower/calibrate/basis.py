"""The SVD basis of a model's features, measured on trajectories of a plan.

Before the engines are built, where the cache needs one; also by itself, as `fresco-trt calibrate
--measure basis`. Every step of the plan is run in full by the eager model for each of a few
prompts, and what its last block gives is added up (SVD-Cache, arXiv 2601.07396: one reference is
enough, the directions being nearly the same for all prompts).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.backends.base import Progress, silent
from fresco_trt.bundle.svd_basis import Basis, BasisRecord
from fresco_trt.errors import CalibrationError
from fresco_trt.models.registry import family_of
from fresco_trt.models.weights import bundled_components

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn import Module

    from fresco_trt.models.family import ModelFamily
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

ENERGY = 0.85
"""Share of the features' energy in the kept directions: the paper's best."""

SEED = 0
PROMPTS = Path("calibration")

_PACKAGE = Path(__file__).parents[2]
_SHIPPED = (_PACKAGE / "calibration", _PACKAGE.parent / "calibration")  # installed, and a checkout


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What trajectories are drawn with: the float32 model, its weights' SHA-256, the folder of its
    prompt encoders and VAE, the prompts, the seed of the first of them, and for a model that edits
    the source picture of each, RGB of the plan's size.
    """

    facts: ModelFacts
    transformer: Module
    weights_sha256: str
    pipeline: Path
    prompts: tuple[str, ...]
    seed: int = SEED
    pictures: tuple[Image, ...] = ()

    @property
    def family(self) -> ModelFamily:
        """The model's."""
        return family_of(self.facts)

    @property
    def prompts_sha256(self) -> str:
        """SHA-256 of the prompts, one a line, each followed by the pixels of its picture."""
        digest = hashlib.sha256()
        for prompt, picture in zip_longest(self.prompts, self.pictures):
            digest.update(f"{prompt}\n".encode())
            if picture is not None:
                digest.update(picture.tobytes())
        return digest.hexdigest()


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not blank. Raises CalibrationError for none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _no_prompts(f"the prompts {path} cannot be read: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise _no_prompts(f"the file {path} without a prompt")
    return prompts


def default_prompts(model: str) -> Path:
    """Where the prompt set of a model is; see :func:`default_path`."""
    return default_path(model, "prompts.txt")


def default_path(model: str, kind: str) -> Path:
    """Where what a model is calibrated with is: here, else what came with the package.

    A variant takes what the model has that it is named after, and a model over another's prompt
    encoders what that has, unless it has some of its own.
    """
    named_after = model.partition(":")[0]
    names = dict.fromkeys((model, named_after, bundled_components(named_after).name))
    places = [folder / f"{name}-{kind}" for name in names for folder in (PROMPTS, *_SHIPPED)]
    return next((path for path in places if path.exists()), PROMPTS / f"{named_after}-{kind}")


def check_energy(energy: float) -> float:
    """``energy``, if it is a share that directions can hold. Raises CalibrationError."""
    if not 0.0 < energy <= 1.0:
        raise CalibrationError(
            f"an energy of {energy:g}",
            expected="a share above 0 and up to 1",
            fix=f"pass --energy {ENERGY:g}, as published",
        )
    return energy


def measure_basis(
    reference: Reference, plan: StagePlan, *, energy: float = ENERGY, progress: Progress = silent
) -> Basis:
    """The fewest directions that hold ``energy`` of the features on ``plan``'s trajectories.

    Raises CalibrationError for an energy outside (0, 1] and for features that are all zero or not
    finite.
    """
    import torch

    from fresco_trt.lower.calibrate.trajectories import features, in_full
    from fresco_trt.run.cache.svd import directions_of

    check_energy(energy)
    gram = torch.zeros(reference.facts.hidden, reference.facts.hidden, dtype=torch.float64)
    for feature in features(reference, in_full(plan), progress):
        rows = feature.flatten(0, 1).double()
        gram += rows.mT @ rows
    power = float(gram.trace())
    if not 0.0 < power < math.inf:
        raise CalibrationError(
            f"features of energy {power:g}",
            expected="finite ones, not all zero",
            fix="check the weights: this is what they give on the calibration prompts",
        )
    directions, values = directions_of(gram, energy)
    return Basis(
        directions=directions.float(),
        values=values.float(),
        record=BasisRecord(
            model=reference.facts.name,
            weights_sha256=reference.weights_sha256,
            energy=energy,
            prompts=len(reference.prompts),
            prompts_sha256=reference.prompts_sha256,
            seed=reference.seed,
            plan_sha256=in_full(plan).digest(),
        ),
    )


def basis_identity(source: Basis | Reference | None) -> str | None:
    """What tells one basis from another before it is measured; for the build key."""
    if source is None:
        return None
    if isinstance(source, Reference):
        return f"measured: seed {source.seed}, prompts {source.prompts_sha256}"
    digest = hashlib.sha256(source.directions.numpy().tobytes()).hexdigest()
    return f"given: {digest}"


def _no_prompts(given: str) -> CalibrationError:
    return CalibrationError(
        given,
        expected="a text file with one prompt a line, UTF-8",
        fix="write prompts like those that will be asked for there, or give 'fresco-trt calibrate' "
        "a file of them with --prompts and 'build' its basis with --cache svd,basis=FILE",
    )
