"""A packaged model in one folder: whole where diffusers looks for it, its parts kept once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import fresco_trt
from fresco_trt.errors import OutputNotWritable, WeightsNotFound
from fresco_trt.models import pretrained as shipped
from fresco_trt.models.checkpoint import WEIGHTS_NAME
from fresco_trt.models.difference import DIFFERENCE_NAME, coded, read_whole
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.pretrained import siblings, whole_folder
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.models.weights import bundled_folder, weights_digest

STUDENT, WHOLE = bundled_folder("flux-tiny-turbo"), bundled_folder("flux-tiny")
ADDED = 3_000_000


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept things, empty."""
    monkeypatch.setenv("FRESCO_TRT_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "pretrained"


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def changed(tmp_path: Path) -> Path:
    """A student with other weights, beside nothing."""
    folder = tmp_path / "other" / STUDENT.name
    shutil.copytree(STUDENT, folder)
    with (folder / "transformer" / WEIGHTS_NAME).open("ab") as stream:
        stream.write(b" ")
    return folder


def test_a_student_ships_as_little_more_than_its_transformer() -> None:
    assert {path.name for path in STUDENT.iterdir()} == {"transformer", "shares.json"}
    assert sum(map(len, files(STUDENT).values())) < ADDED


def test_the_siblings_of_a_model_are_those_over_its_parts() -> None:
    assert siblings("flux-tiny") == ("flux-tiny-turbo",)
    assert all(siblings(name) == () for name in model_names() if name != "flux-tiny")


def test_a_whole_model_stays_where_it_is(kept: Path) -> None:
    assert fresco_trt.pretrained("flux-tiny") == WHOLE
    assert not kept.exists()


def test_a_student_is_put_together_once_from_its_parts() -> None:
    folder = fresco_trt.pretrained("flux-tiny-turbo")
    assert {path.name for path in folder.iterdir()} == {"transformer", *COMPONENTS}
    parts = {name: data for name, data in files(WHOLE).items() if "transformer/" not in name}
    assert parts.items() <= files(folder).items()
    found = load_file(folder / "transformer" / WEIGHTS_NAME)
    wanted = read_whole(STUDENT / "transformer")
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(value) for name, value in wanted.items())
    made = folder.stat().st_ino
    assert fresco_trt.pretrained("flux-tiny-turbo") == folder
    assert folder.stat().st_ino == made


def test_diffusers_loads_it_with_the_students_weights() -> None:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny-turbo")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    own, teachers = (
        weights_digest(load_transformer(None, model_facts(name)))
        for name in ("flux-tiny-turbo", "flux-tiny")
    )
    assert weights_digest(pipe.transformer.float()) == own != teachers
    assert pipe.scheduler.config.use_dynamic_shifting


def test_what_was_damaged_is_put_together_again() -> None:
    folder = fresco_trt.pretrained("flux-tiny-turbo")
    sound = files(folder)
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "transformer" / WEIGHTS_NAME).unlink()
    assert fresco_trt.pretrained("flux-tiny-turbo") == folder
    assert files(folder) == sound


def test_other_weights_have_another_folder(tmp_path: Path, kept: Path) -> None:
    folders = {whole_folder(STUDENT), whole_folder(changed(tmp_path))}
    assert folders == set(kept.iterdir())
    assert len(folders) == 2


def test_a_difference_is_put_together_as_weights_in_full(tmp_path: Path) -> None:
    own, old = (read_whole(each / "transformer") for each in (STUDENT, WHOLE))
    folder = tmp_path / "other" / STUDENT.name
    shutil.copytree(STUDENT, folder)
    file = folder / "transformer" / DIFFERENCE_NAME
    save_file(coded(own, old), file, {"of": WHOLE.name})
    made = whole_folder(folder)
    assert {path.name for path in (made / "transformer").iterdir()} == {"config.json", WEIGHTS_NAME}
    found, wanted = load_file(made / "transformer" / WEIGHTS_NAME), read_whole(file.parent)
    assert all(found[name].equal(value) for name, value in wanted.items())
    assert whole_folder(folder) == made != whole_folder(STUDENT)


def test_a_copy_that_breaks_off_leaves_nothing(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tmp_path)

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped.shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole_folder(folder)
    assert list(kept.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FRESCO_TRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputNotWritable, match="file"):
        whole_folder(STUDENT)


def test_a_student_of_no_packaged_model_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    (folder / "shares.json").write_text('{"parts_of": "flux-tinny"}')
    with pytest.raises(WeightsNotFound, match="flux-tinny"):
        whole_folder(folder)
