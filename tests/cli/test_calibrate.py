"""The calibrate command: what it stores, what it refuses, and the spectra that are stored here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fresco_trt.bench.scenes.pictures import drawn_scenes
from fresco_trt.cli import calibrate_tables as tables
from fresco_trt.cli import main as cli
from fresco_trt.errors import FrescoError
from fresco_trt.lower.calibrate import run_spectrum as spectrum
from fresco_trt.lower.calibrate.options import Options
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.models.weights import bundled_folder

run_spectrum = partial(spectrum.run_spectrum, scenes=drawn_scenes)  # as the command does

ROOT = Path(__file__).parents[2]
STORED = sorted((ROOT / "calibration").glob("*-spectrum.json"))
TINY = bundled_folder("flux-tiny")
KEYS = {
    *("schema", "version", "model", "vae", "size", "pictures", "seed", "mean_square"),
    *("amplitude", "beta", "fit", "spectrum"),
}

needs_resvg = pytest.mark.skipif(
    find_spec("resvg_py") is None, reason="resvg-py, of the bench extra, draws the scenes"
)


def pictures(folder: Path, count: int = 4, side: int = 300) -> Path:
    """A folder of pictures whose spectra fall: sums of a few waves."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(count):
        rough = rng.normal(size=(side, side, 3)).cumsum(axis=0).cumsum(axis=1)
        pixels = 255 * (rough - rough.min()) / np.ptp(rough)
        Image.fromarray(pixels.astype(np.uint8), "RGB").save(folder / f"{number}.png")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def silent(phase: str, fraction: float) -> None:
    pass


# --- what is stored ---------------------------------------------------------------------------


@needs_resvg
def test_scenes_are_drawn_measured_and_stored(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "--model", "flux-tiny", "--scenes", "3", "--out", "new/folder"]
    assert cli.main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert found.pop("file") == "new/folder/flux-tiny-spectrum.json"
    assert left(place) == ["new/folder/flux-tiny-spectrum.json"]
    assert found == json.loads(Path("new/folder/flux-tiny-spectrum.json").read_text())
    assert found.keys() == KEYS
    assert (found["size"], found["seed"]) == ([256, 256], spectrum.SEED)
    assert found["pictures"]["count"] == 3
    assert [ring["frequency"] for ring in found["spectrum"]] == list(range(1, 33))
    assert cli.main(arguments) == 0
    assert "cycles" in capsys.readouterr().out


@needs_resvg
def test_the_same_command_stores_the_same_bytes(place: Path) -> None:
    for out in ("a", "b"):
        run_spectrum(Options(model="flux-tiny", scenes=2, out=Path(out)), silent)
    first, second = (Path(out, "flux-tiny-spectrum.json").read_bytes() for out in ("a", "b"))
    assert first == second


def test_a_folder_of_pictures_is_measured_with_a_given_codec(place: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    shutil.copytree(TINY / "vae", tmp_path / "own" / "vae")
    told: list[float] = []
    found = run_spectrum(
        Options(model="flux-tiny", pictures=folder, weights=str(tmp_path / "own")),
        lambda phase, fraction: told.append(fraction),
    )
    assert left(place) == ["calibration/flux-tiny-spectrum.json"]
    assert (found["seed"], found["pictures"]["count"]) == (None, 4)
    assert found["pictures"]["source"] == "a given folder"
    assert str(tmp_path) not in json.dumps(found)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


# --- what is stored here ----------------------------------------------------------------------


def test_there_is_a_stored_spectrum() -> None:
    assert "flux-tiny-spectrum.json" in [path.name for path in STORED]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_facts_are_what_was_measured(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored.keys() == KEYS
    assert path.name == f"{stored['model']}-spectrum.json"
    facts = model_facts(stored["model"])
    assert facts.spectrum is not None
    assert facts.spectrum.amplitude == stored["amplitude"]
    assert facts.spectrum.beta == stored["beta"]
    assert facts.spectrum.source.startswith(f"calibration/{path.name}: ")
    assert str(stored["pictures"]["count"]) in facts.spectrum.source
    assert tuple(stored["size"]) == facts.default_size


@pytest.mark.parametrize("name", model_names())
def test_a_spectrum_measured_here_names_a_file_that_is_here(name: str) -> None:
    spectrum = model_facts(name).spectrum
    if spectrum is not None and spectrum.source.startswith("calibration/"):
        assert ROOT / spectrum.source.partition(":")[0] in STORED


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_law_is_the_fit_of_its_own_rings(path: Path) -> None:
    from fresco_trt.lower.calibrate.spectrum import RadialSpectrum, Ring, fit_power_law

    stored = json.loads(path.read_text(encoding="utf-8"))
    scale = model_facts(stored["model"]).vae_scale
    grid = RadialSpectrum(stored["size"][1] // scale, stored["size"][0] // scale)
    rings = [Ring(**ring) for ring in stored["spectrum"]]
    law = fit_power_law(rings, grid.frequencies, stored["fit"]["low"])
    assert law.amplitude == pytest.approx(stored["amplitude"], rel=1e-4)
    assert law.beta == pytest.approx(stored["beta"], rel=1e-4)
    assert law.r2 == pytest.approx(stored["fit"]["r2"], rel=1e-4)
    assert law.factor == pytest.approx(stored["fit"]["factor"], rel=1e-4)


def test_the_stored_spectrum_is_that_of_the_bundled_codec() -> None:
    from fresco_trt.models.flux.components import FluxEncoder

    stored = json.loads((ROOT / "calibration" / "flux-tiny-spectrum.json").read_text())
    encoder = FluxEncoder(TINY)
    expected = {"sha256": encoder.digest, "scaling": encoder.scaling, "shift": encoder.shift}
    assert stored["vae"] == expected


@needs_resvg
def test_other_scenes_give_the_stored_spectrum_within_its_errors(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.loads((ROOT / "calibration" / "flux-tiny-spectrum.json").read_text())
    monkeypatch.setattr(spectrum, "SEED", 77)
    found = run_spectrum(Options(model="flux-tiny", scenes=24), silent)
    for one, other in zip(found["spectrum"], stored["spectrum"], strict=True):
        error = (one["error"] ** 2 + other["error"] ** 2) ** 0.5
        assert abs(one["power"] - other["power"]) < 5 * error
    assert found["beta"] == pytest.approx(stored["beta"], abs=0.2)


# --- refusals ---------------------------------------------------------------------------------

WORDS: list[tuple[list[str], list[str]]] = [
    (["--model", "flux-tinny"], ["flux-tinny", "did you mean flux-tiny"]),
    (["--model", "flux"], ["no pictures for flux", "--pictures"]),
    (["--model", "flux", "--scenes", "9"], ["no pictures for flux", "--pictures"]),
    (["--model", "flux", "--pictures", "large"], ["no VAE for flux", "pass --weights"]),
    (
        ["--model", "flux", "--pictures", "large", "--weights", str(TINY)],
        ["4 channels at 1/4", "16 channels at 1/8", "flux"],
    ),
    (["--model", "flux-tiny", "--weights", "absent"], ["no VAE", "absent", "pass --weights"]),
    (["--model", "flux-tiny", "--weights", "random"], ["no VAE", "random"]),
    (["--model", "flux-tiny", "--scenes", "1"], ["--scenes 1", "2 or more"]),
    (["--model", "flux-tiny", "--scenes", "-4"], ["--scenes -4", "2 or more"]),
    (
        ["--model", "flux-tiny", "--scenes", "4", "--pictures", "large"],
        ["--scenes 4 with --pictures large", "leave --scenes out"],
    ),
    (["--model", "flux-tiny", "--pictures", "absent"], ["absent", "which is no folder"]),
    (["--model", "flux-tiny", "--pictures", "empty"], ["0 pictures in empty"]),
    (["--model", "flux-tiny", "--pictures", "small"], ["0.png of 200x200", "256x256"]),
    (["--model", "flux-tiny", "--pictures", "broken"], ["broken/1.png", "can be read"]),
    (["--model", "flux-tiny", "--pictures", "plain"], ["without any power", "detail"]),
    (["--model", "flux-tiny", "--out", "file"], ["file", "cannot be written", "--out"]),
    (["--model", "flux-tiny", "--out", "file/below"], ["cannot be written", "--out"]),
    (["--model", "flux-tiny", "--out", "taken"], ["it is a folder", "--out"]),
]


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pictures that will and will not do, and paths that cannot be written."""
    folder = tmp_path_factory.mktemp("furniture")
    pictures(folder / "large", 2, 1024)
    pictures(folder / "small", 2, 200)
    broken = pictures(folder / "broken", 2)
    (broken / "1.png").write_bytes((broken / "1.png").read_bytes()[:3000])
    (folder / "empty").mkdir()
    (folder / "plain").mkdir()
    for number in range(2):
        Image.new("RGB", (256, 256)).save(folder / "plain" / f"{number}.png")
    (folder / "file").write_text("in the way")
    (folder / "taken" / "flux-tiny-spectrum.json").mkdir(parents=True)
    return folder


@pytest.fixture
def furnished(place: Path, furniture: Path) -> Path:
    """A copy of these to run in."""
    return Path(shutil.copytree(furniture, place, dirs_exist_ok=True))


@needs_resvg
@pytest.mark.parametrize(("arguments", "words"), WORDS)
def test_a_wrong_request_is_refused_with_a_way_out(
    furnished: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "plain" in arguments:  # this codec makes something of its borders, even out of nothing
        monkeypatch.setattr("fresco_trt.models.flux.components.FluxEncoder.__call__", nothing)
    before = left(furnished)
    code = cli.main(["calibrate", *arguments, "--json"])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert re.match(r"\Aerror: .+; expected .+\. Fix: .+\n\Z", said.err, re.DOTALL), said.err
    assert all(word in said.err for word in words), said.err
    assert left(furnished) == before
    assert (furnished / "file").read_text() == "in the way"


def nothing(encoder: Any, pixels: Any) -> Any:
    """Latents of one value."""
    import torch

    return torch.full((len(pixels), 4, 64, 64), 0.3)


def test_without_resvg_the_command_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spectrum, "find_spec", lambda name: None)
    assert cli.main(["calibrate", "--model", "flux-tiny"]) == 2
    assert "pip install 'fresco-trt[bench]'" in capsys.readouterr().err
    assert left(place) == []


# --- nothing half-written ---------------------------------------------------------------------


def test_what_cannot_be_written_is_told_before_anything_is_drawn(
    furnished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "_batches", None)
    with pytest.raises(FrescoError, match="cannot be written"):
        run_spectrum(Options(model="flux-tiny", pictures=Path("large"), out=Path("file")), silent)


def test_a_failure_while_measuring_keeps_the_old_result(furnished: Path) -> None:
    out = furnished / "calibration"
    out.mkdir()
    (out / "flux-tiny-spectrum.json").write_text("old")
    with pytest.raises(FrescoError, match=r"1\.png"):
        run_spectrum(Options(model="flux-tiny", pictures=Path("broken")), silent)
    assert [path.read_text() for path in out.iterdir()] == ["old"]


# --- around it --------------------------------------------------------------------------------


def test_the_command_is_lean_to_import() -> None:
    code = "import fresco_trt.cli.calibrate, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    loaded = {name.partition(b".")[0] for name in done.stdout.split()}
    assert not loaded & {b"torch", b"numpy", b"PIL", b"diffusers"}


def test_the_table_has_every_doubling_and_the_law(capsys: pytest.CaptureFixture[str]) -> None:
    stored = json.loads((ROOT / "calibration" / "flux-tiny-spectrum.json").read_text())
    tables.spectrum_table({"file": "somewhere.json", **stored})
    shown = capsys.readouterr().out
    for ring in stored["spectrum"]:
        doubled = ring["frequency"] in (1, 2, 4, 8, 16, 32)
        assert (f"{ring['power']:.4g}" in shown) == doubled
    assert f"w^-{stored['beta']:g}" in shown
    assert "somewhere.json" in shown


def test_a_model_over_the_demos_codec_is_measured_on_the_demos_scenes(place: Path) -> None:
    own, demos = (
        run_spectrum(Options(model=f"flux-tiny{end}", scenes=2), silent) for end in ("-turbo", "")
    )
    assert (own.pop("model"), demos.pop("model")) == ("flux-tiny-turbo", "flux-tiny")
    assert own == demos
