"""Edits to calibrate with: a folder of pictures and prompts, read whole or refused in a line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fresco_trt.cli import main as cli
from fresco_trt.errors import CalibrationError, PictureInvalid
from fresco_trt.files.picture_file import SourceWarning
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.edits import METADATA, default_edits, read_edits
from fresco_trt.lower.calibrate.trajectories import cases
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import make_plan

SIZE = (64, 64)
EDITS = (("red.png", "make it blue"), ("green.png", "add a cat"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two edits."""
    path = tmp_path / "edits"
    path.mkdir()
    for name, _ in EDITS:
        Image.new("RGB", SIZE, name.removesuffix(".png")).save(path / name)
    describe(path, *EDITS)
    return path


def describe(folder: Path, *edits: tuple[str, str]) -> None:
    lines = [json.dumps({"file_name": name, "prompt": prompt}) for name, prompt in edits]
    (folder / METADATA).write_text("".join(f"{line}\n\n" for line in lines), encoding="utf-8")


def reference(model: str, **given: Any) -> Reference:
    nothing: Any = None
    settings = {"transformer": nothing, "weights_sha256": "", "pipeline": Path(), **given}
    return Reference(facts=model_facts(model), **settings)


def test_prompts_and_pictures_are_read_in_their_order(folder: Path) -> None:
    describe(folder, *reversed(EDITS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts, pictures = read_edits(folder, SIZE)
    assert prompts == ("add a cat", "make it blue")
    assert [each.getpixel((5, 5)) for each in pictures] == [(0, 128, 0), (255, 0, 0)]


def test_what_is_changed_of_pictures_is_said_once(folder: Path) -> None:
    with pytest.warns(SourceWarning) as caught:
        _, pictures = read_edits(folder, (96, 64))
    assert {each.size for each in pictures} == {(96, 64)}
    (said,) = [str(each.message) for each in caught]
    assert "red.png is 64x64: resized to 96x64, which changes its aspect" in said
    assert "1 more" in said


def test_the_digest_is_of_prompts_and_pictures(folder: Path) -> None:
    prompts, pictures = read_edits(folder, SIZE)
    first = reference("flux-kontext", prompts=prompts, pictures=pictures).prompts_sha256
    for given in (
        {"prompts": prompts[::-1], "pictures": pictures},
        {"prompts": prompts, "pictures": pictures[::-1]},
        {"prompts": prompts},
    ):
        assert reference("flux-kontext", **given).prompts_sha256 != first


def cut_short(path: Path) -> None:
    picture = path / "red.png"
    picture.write_bytes(picture.read_bytes()[:60])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda path: (path / METADATA).unlink(), r"no \S+metadata.jsonl"),
    "an empty list": (lambda path: describe(path), "with 0 edits"),
    "one edit": (lambda path: describe(path, EDITS[0]), "with 1 edits"),
    "no JSON": (lambda path: (path / METADATA).write_text("red.png\n"), "line 1 of"),
    "a number": (lambda path: (path / METADATA).write_text("3\n"), "line 1 of"),
    "no prompt": (lambda path: describe(path, EDITS[0], ("green.png", " ")), "line 3 .*empty"),
    "no text": (lambda path: (path / METADATA).write_bytes(b"\xff\xff"), "cannot be read"),
    "a picture away": (lambda path: (path / "red.png").unlink(), "red.png, which is not there"),
    "outside": (lambda path: describe(path, ("../x.png", "add")), "not in the folder"),
    "cut short": (cut_short, "red.png, which holds no picture"),
    "empty": (lambda path: (path / "red.png").write_bytes(b""), "red.png, which holds no picture"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(kind: str, folder: Path) -> None:
    spoil, words = BROKEN[kind]
    spoil(folder)
    with pytest.raises((CalibrationError, PictureInvalid), match=words) as caught:
        read_edits(folder, SIZE)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_edits_are_found_as_prompts_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_edits("flux-kontext:num_layers=1") == Path("calibration/flux-kontext-edits")
    prompts, pictures = read_edits(default_edits("flux-tiny-kontext"), (128, 128))  # packaged
    assert len(prompts) == len(pictures) == 16
    own = tmp_path / "calibration" / "flux-tiny-kontext-edits"
    own.mkdir(parents=True)
    assert default_edits("flux-tiny-kontext").resolve() == own


def test_the_demos_edits_are_what_their_command_writes(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    from training.calibration_edits import OUT, write_edits

    write_edits(tmp_path)
    stored = Path(__file__).parents[3] / OUT
    assert (tmp_path / METADATA).read_text() == (stored / METADATA).read_text()
    ours, theirs = (read_edits(each, (128, 128))[1] for each in (tmp_path, stored))
    for one, two in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(two, int)).max() <= 2


# --- the other kind of model ------------------------------------------------------------------


def test_a_calibration_of_the_other_kind_is_refused(folder: Path) -> None:
    prompts, pictures = read_edits(folder, SIZE)
    for model, given, words in (
        ("flux-kontext", (), "which edits pictures, with prompts alone"),
        ("flux-tiny", pictures, "flux-tiny with 2 source pictures"),
    ):
        plan = make_plan(model_facts(model), stages=1, size=SIZE)
        with pytest.raises(CalibrationError, match=words):
            cases(reference(model, prompts=prompts, pictures=given), plan)


@pytest.mark.parametrize("measure", ["basis", "cache-schedule", "amax", "sensitivity"])
def test_the_command_takes_what_the_kind_of_model_is_calibrated_with(
    measure: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "calibration" / "flux-kontext-prompts.txt"
    prompts.parent.mkdir()
    prompts.write_text("a cat\n")
    asked = ["calibrate", "--measure", measure]
    for given, words in (
        (["--model", "flux-kontext", "--prompts", str(prompts)], "--pictures with a folder"),
        (["--model", "flux-kontext"], "flux-kontext-prompts.txt has prompts alone"),
        (["--model", "flux-tiny", "--pictures", str(folder)], "draws from prompts alone"),
    ):
        assert cli.main([*asked, *given]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in prompts.parent.iterdir()] == [prompts.name]


def test_a_build_says_where_edits_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fresco_trt.lower.build import BuildRequest, run
    from tests.pipelines.test_edit import MODEL

    monkeypatch.chdir(tmp_path)
    request = BuildRequest(model=MODEL, weights="random", size=SIZE, stages=1, precision="int8")
    with pytest.raises(CalibrationError, match=r"calibration.flux-kontext-edits.metadata.jsonl"):
        run(request)
    assert not list(tmp_path.iterdir())
