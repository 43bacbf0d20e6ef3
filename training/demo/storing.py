"""What is kept of a trained demo: folders as the package has them, in bfloat16.

    FOLDER/flux-tiny          a pipeline of diffusers', at most 28 MB
    FOLDER/flux-tiny-turbo    its student, as low-rank factors of its transformer, at most 3 MB

They are made to take the places of those in `fresco_trt/models/flux/weights`; the student is read
from there alone, since what it is a difference to has to be a packaged model.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch

from fresco_trt.errors import OutputNotWritable
from fresco_trt.files.atomic_folder import (
    create_partial,
    put_in_place,
    remove,
    sweep,
    written_to,
)
from fresco_trt.models.difference import DIFFERENCE_NAME, low_rank
from fresco_trt.models.weights import SHARES_NAME
from training.assemble import store_pipeline
from training.demo.low_rank import factors_of
from training.vae import scale_to

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import AutoencoderKL

    from training.demo.model import SceneModel

TEACHER, STUDENT = "flux-tiny", "flux-tiny-turbo"

MOST_BYTES = {TEACHER: 28_000_000, STUDENT: 3_000_000}


def store_codec(vae: AutoencoderKL, pictures: torch.Tensor, out: Path) -> None:
    """Write the codec as it will ship, in bfloat16, scaled to pictures [B,3,H,W]."""
    vae = copy.deepcopy(vae).to(torch.bfloat16).float()
    scale_to(vae, pictures)
    vae.to(torch.bfloat16)
    _whole(out, vae.save_pretrained)


def store_demo(
    teacher: SceneModel, student: SceneModel, vae: AutoencoderKL, out: Path
) -> dict[str, int]:
    """Write both folders, and give their sizes in bytes."""
    whole, codec = copy.deepcopy(teacher).cpu(), copy.deepcopy(vae).cpu()
    types = {"dtype": torch.bfloat16, "encoders": torch.bfloat16}
    _whole(out / TEACHER, lambda folder: store_pipeline(whole, codec, folder, **types))
    _whole(out / STUDENT, lambda folder: _write_student(student, folder))
    return {name: _size(out / name) for name in MOST_BYTES}


def _write_student(student: SceneModel, out: Path) -> None:
    from safetensors.torch import save_file

    transformer = student.transformer
    (out / "transformer").mkdir()
    transformer.save_config(out / "transformer")
    change = low_rank(factors_of(transformer))
    save_file(change, out / "transformer" / DIFFERENCE_NAME, {"of": TEACHER})
    shares = json.dumps({"parts_of": TEACHER}, indent=2)
    (out / SHARES_NAME).write_text(f"{shares}\n", encoding="utf-8")


def _whole(out: Path, write: Callable[[Path], object]) -> None:
    """Write a folder that takes another's place when all of it is there."""
    with written_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        partial = create_partial(out)
        try:
            write(partial.folder)
            partial.folder.chmod(0o755)
            put_in_place(partial, out)
        except BaseException:
            remove(partial.folder)
            raise
        finally:
            partial.release()


def check_store(out: Path) -> None:
    """Raise OutputNotWritable for a place where no folder can be, before minutes of training."""
    if out.exists() and not out.is_dir():
        raise OutputNotWritable(
            f"--store {out}, which is a file",
            expected="a folder, or a name that is free",
            fix="pass another --store",
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
