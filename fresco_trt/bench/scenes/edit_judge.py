"""What became of an edit: whether it was made, and whether the rest of the picture was left alone.

An edit is made if the demo's classifier sees what the target scene holds, and no more of an object
that was to go. It knows no painted objects: a paint is right if the object's pixels are nearer to
it in the colour that was asked for than to any other colour, or its own. The rest is measured
against the source, in decibels, wherever the edit may change nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fresco_trt.bench.quality import DECIBELS, mean_interval, wilson_interval
from fresco_trt.bench.scenes.edits import KINDS, Edit, changed, random_edit
from fresco_trt.bench.scenes.judge import verdicts
from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from fresco_trt.bench.scenes.judge import Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class EditVerdict:
    """Whether an edit was made; ``outside`` is the PSNR (dB) to the source of what is no part of
    it, at most :data:`~fresco_trt.bench.quality.DECIBELS`.
    """

    made: bool
    outside: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScore:
    """Share of edits that were made and their mean PSNR outside of the mask, each with the ends of
    its 95% interval.
    """

    edits: int
    made: tuple[float, float, float]
    outside: tuple[float, float, float]


def judged_edits(count: int, seed: int = 0) -> list[Edit]:
    """Edits to score a model by, of every kind in turn."""
    rng = random.Random(f"judged edits {seed}")
    return [random_edit(rng, KINDS[index % len(KINDS)]) for index in range(count)]


@torch.no_grad()
def edit_verdicts(judge: Judge, pictures: Tensor, edits: Sequence[Edit]) -> list[EditVerdict]:
    """Judge results [B,3,H,W] in [-1,1] of ``edits``, drawn from sources of the same size."""
    if len(pictures) != len(edits):
        raise ValueError(f"{len(pictures)} pictures of {len(edits)} edits")
    right = verdicts(judge, pictures, [edit.target for edit in edits])
    seen = judge(pictures)[0] > 0
    found = []
    for index, (edit, picture) in enumerate(zip(edits, pictures, strict=True)):
        if edit.kind == "paint":
            made = _is_painted(picture, edit)
        else:
            made = right[index].right and not any(seen[index, name] for name in _gone(edit))
        found.append(EditVerdict(made=made, outside=_outside(picture, edit)))
    return found


def edit_score(found: Sequence[EditVerdict]) -> EditScore:
    """The score of a set. Raises ValueError for an empty one."""
    if not found:
        raise ValueError("no edits to score")
    made = sum(each.made for each in found)
    return EditScore(
        edits=len(found),
        made=(made / len(found), *wilson_interval(made, len(found))),
        outside=mean_interval([each.outside for each in found], DECIBELS),
    )


def _gone(edit: Edit) -> Iterator[int]:
    """Indices of the objects that only the source has."""
    after = {place.name for place in edit.target.placements}
    names = list(OBJECTS)
    return (names.index(p.name) for p in edit.source.placements if p.name not in after)


def _is_painted(picture: Tensor, edit: Edit) -> bool:
    width, height = picture.shape[2], picture.shape[1]
    (place,) = set(edit.target.placements) - set(edit.source.placements)
    tints = [each for each in COLOURS if each != place.tint]
    scenes = [edit.target, edit.source, *(_tinted(edit.target, each) for each in tints)]
    mask = torch.from_numpy(changed(edit, width, height))
    inside = pictures_of(scenes, width, height)[:, :, mask]
    return (inside - picture[:, mask]).square().mean((1, 2)).argmin().item() == 0


def _tinted(scene: Scene, tint: str) -> Scene:
    """A scene with its painted objects in another colour."""
    places = (replace(p, tint=tint) if p.tint is not None else p for p in scene.placements)
    return replace(scene, placements=tuple(places))


def _outside(picture: Tensor, edit: Edit) -> float:
    width, height = picture.shape[2], picture.shape[1]
    rest = torch.from_numpy(~changed(edit, width, height))
    (source,) = pictures_of([edit.source], width, height)
    error = (picture[:, rest] - source[:, rest]).square().mean()
    psnr: float = 10 * torch.log10(4 / error).item()  # values lie between -1 and 1
    return min(psnr, DECIBELS)
