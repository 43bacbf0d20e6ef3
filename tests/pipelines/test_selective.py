"""Selective edits, from a mask and a bundle to a picture: what changes, stays, and is said."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fresco_trt.bundle import open_bundle
from fresco_trt.cli import main as cli
from fresco_trt.errors import IncompatibleOptions, PictureInvalid
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.pipelines.edit import SourceWarning, example_source
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.selective import (
    EditWarning,
    example_masks,
    mask_latents,
    mask_picture,
)
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.verify import verify_bundle

MODEL = (
    "flux-kontext:num_layers=1,num_single_layers=1,num_attention_heads=2,attention_head_dim=16,"
    "axes_dims_rope=4+6+6,joint_attention_dim=32,pooled_projection_dim=32,in_channels=16,vae_scale=4"
)
SIZE = (64, 64)
PROMPT = "make the square blue"


def built(folder: Path, **options: Any) -> Path:
    request = BuildRequest(
        model=MODEL, weights="random", backend="eager", size=SIZE, out=folder, **options
    )
    return run(request).bundle.folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft of 4x4 tokens; 4 of them refined, or 8, or all."""
    where = tmp_path_factory.mktemp("selective") / "bundle"
    return built(where, stages=4, preset="specedit", cache="hicache")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[FrescoPipeline]:
    with FrescoPipeline.from_bundle(folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def source(folder: Path) -> Image.Image:
    found = example_source(open_bundle(folder))
    assert found is not None
    return found


def corner() -> Image.Image:
    """White over the upper left token of the draft."""
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 16, 16))
    return mask


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


# --- pictures ---------------------------------------------------------------------------------


def test_what_a_mask_leaves_alone_is_the_sources_own_latents(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    kept, watched = [], copy.copy(pipe)

    class Watching:
        """The pipeline's decoder, and what it was given."""

        features = pipe._decoder.features

        def __call__(self, latents: Any) -> Any:
            kept.append(latents)
            return pipe._decoder(latents)

    watched._decoder = Watching()
    result = watched(PROMPT, image=source, mask=corner(), seed=3, record_steps=True)
    (drawn,), (mask,), (latents,) = result.images, result.masks, kept
    assert np.array_equal(pixels(mask), pixels(corner()))
    assert {step.stage for step in result.steps} == {1, 2}
    assert result.nfe == len(result.steps)
    assert watched._encoder is not None
    own = watched._encoder(np.array(source)[None])
    side, blend = 4, 2  # of a token of the draft, in latent pixels; of the seam
    assert torch.equal(latents[..., side + blend :, :], own[..., side + blend :, :])
    assert torch.equal(latents[..., side + blend :], own[..., side + blend :])
    assert (latents - own)[..., : side - blend, : side - blend].abs().min() > 0
    again = pipe(PROMPT, image=source, mask=corner(), seed=3).images[0]
    assert np.array_equal(pixels(again), pixels(drawn))
    other = pipe(PROMPT, image=source, mask=corner(), seed=4).images[0]
    assert not np.array_equal(pixels(other), pixels(drawn))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_stage_is_reached_by_a_mask_of_its_own(
    pipe: FrescoPipeline, source: Image.Image, number: int
) -> None:
    mask = example_masks(pipe.plan)[number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditWarning)
        result = pipe(PROMPT, image=source, mask=mask, record_steps=True)
    assert result.steps[-1].stage == number + 2


def test_previews_end_before_the_last_stage_that_is_taken(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    seen: list[int] = []
    pipe(PROMPT, image=source, mask=corner(), on_stage=lambda stage, _: seen.append(stage))
    assert seen == [1]


def test_an_edit_that_touches_nothing_gives_the_source_and_says_so(
    folder: Path, source: Image.Image, tmp_path: Path
) -> None:
    blind = built(tmp_path / "blind", stages=3, preset="specedit,threshold=100")
    with (
        FrescoPipeline.from_bundle(blind) as pipe,
        pytest.warns(EditWarning, match=r"touches nothing.*threshold=50"),
    ):
        result = pipe(PROMPT, image=source)
    assert np.array_equal(pixels(result.images[0]), pixels(source))
    assert pixels(result.masks[0]).max() == 0


def test_an_edit_of_everything_draws_everything_and_says_so(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    whole = Image.new("L", SIZE, 255)
    with pytest.warns(EditWarning, match="100% of the picture.*drawn anew"):
        result = pipe(PROMPT, image=source, mask=whole, record_steps=True)
    assert result.steps[-1].stage == 4
    assert pixels(result.masks[0]).min() == 255


def test_the_draft_decides_where_there_is_no_mask(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    """Random weights draw nothing like the source: all of it differs."""
    with pytest.warns(EditWarning, match="drawn anew"):
        assert pixels(pipe(PROMPT, image=source).masks[0]).min() == 255


def test_verification_runs_every_stage_that_may_follow(folder: Path) -> None:
    found = verify_bundle(folder)
    found.require()
    assert {error.engine for error in found.engines} == {
        f"stage{stage}.{action}" for stage in (1, 2, 3, 4) for action in ("full", "bypass")
    }


def test_warming_up_draws_with_every_stage_that_may_follow(folder: Path) -> None:
    with FrescoPipelines.from_bundles(folder, lazy=True) as pipes:
        (cost,) = pipes.warm_up()
    assert {stage.stage for stage in cost.stages if stage.first} == {1, 2, 3, 4}


def test_the_command_takes_a_mask_and_saves_the_one_it_found(
    folder: Path, source: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, mask, saved = (tmp_path / f"{name}.png" for name in ("source", "mask", "saved"))
    source.save(given)
    corner().save(mask)
    arguments = ["edit", "--engines", str(folder), "--image", str(given), "--prompt", PROMPT]
    arguments += ["--out", str(tmp_path / "out.png"), "--save-mask", str(saved), "--json"]
    assert cli.main([*arguments, "--mask", str(mask)]) == 0
    assert json.loads(capsys.readouterr().out)["mask"] == str(saved)
    assert np.array_equal(pixels(Image.open(saved)), pixels(corner()))
    saved.unlink()
    assert cli.main([*arguments, "--mask", str(tmp_path / "none.png")]) == 2
    assert cli.main([*arguments[:-2], "masks/found.jpg"]) == 2
    assert not saved.exists()


# --- masks ------------------------------------------------------------------------------------


def test_a_mask_is_read_whatever_form_it_has(tmp_path: Path) -> None:
    wanted = pixels(corner())
    clear = Image.new("RGBA", SIZE, (9, 9, 9, 255))
    ImageDraw.Draw(clear).rectangle((0, 0, 15, 15), fill=(9, 9, 9, 0))
    for given in (corner(), corner().convert("RGB"), corner().convert("1"), clear):
        assert np.array_equal(pixels(mask_picture(given, SIZE)), wanted)
    large = corner().resize((128, 96), Image.Resampling.NEAREST)
    with pytest.warns(SourceWarning, match="128x96: resized to 64x64"):
        assert np.array_equal(pixels(mask_picture(large, SIZE)), wanted)


def test_a_mask_that_lets_nothing_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureInvalid, match="black everywhere"):
        mask_picture(Image.new("L", SIZE, 127), SIZE)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(PictureInvalid):
        mask_picture(empty, SIZE)


def test_a_latent_pixel_is_touched_by_any_white_in_it() -> None:
    mask = Image.new("L", (8, 8), 0)
    mask.putpixel((5, 2), 255)
    assert mask_latents(mask, 4)[0, 0].tolist() == [[False, True], [False, False]]


def test_masks_are_for_engines_that_refine_what_they_show(
    source: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = built(tmp_path / "plain", stages=1, steps=1)
    with FrescoPipeline.from_bundle(plain) as pipe:
        with pytest.raises(IncompatibleOptions, match="draw every token") as caught:
            pipe(PROMPT, image=source, mask=corner())
        assert "--mask" not in str(caught.value), "in Python's words"
        assert pipe(PROMPT, image=source).masks == []
    given, saved = tmp_path / "in.png", tmp_path / "mask.png"
    source.save(given)
    arguments = ["edit", "--engines", str(plain), "--image", str(given), "--prompt", PROMPT]
    assert cli.main([*arguments, "--save-mask", str(saved)]) == 2
    assert "--save-mask with engines" in capsys.readouterr().err
    assert not saved.exists()
