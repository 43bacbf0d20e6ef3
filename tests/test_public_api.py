"""The public surface: what is listed is there, what is there is listed, and it stays as it is."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import FrescoError, UnknownModel, WeightsNotFound
from fresco_trt.models.registry import model_names
from fresco_trt.plan.stages import StagePlan

ROOT = Path(__file__).parents[1]

# A change here is a change of the interface: it belongs into the release notes.
SIGNATURES = {
    "plan": (
        "(model: 'str', *, stages: 'int', preset: 'PresetConfig | str' = 'balanced', "
        "size: 'Size | str | None' = None, steps: 'int | None' = None, "
        "delta: 'float | None' = None, shift: 'float | None' = None, "
        "cache: 'CacheConfig | str' = 'none') -> 'StagePlan'"
    ),
    "build": (
        "(model: 'str | StagePlan', *, stages: 'int | None' = None, "
        "preset: 'PresetConfig | str | None' = None, "
        "size: 'Size | str | None' = None, cache: 'CacheConfig | str' = 'none', "
        "weights: 'str | None' = None, backend: 'str | None' = None, "
        "precision: 'QuantConfig | str | None' = None, target: 'TargetConfig | str' = '', "
        "out: 'str | Path | None' = None) -> 'Path'"
    ),
    "enable": (
        "(pipe: 'Any', *, model: 'str | None' = None, "
        "stages: 'int | None' = None, preset: 'PresetConfig | str | None' = None, "
        "delta: 'float | None' = None, shift: 'float | None' = None, "
        "cache: 'CacheConfig | str | None' = None, "
        "engines: 'str | Path | None' = None, trust_native_code: 'bool' = False, "
        "verify_key: 'str | Path | None' = None) -> 'None'"
    ),
    "disable": "(pipe: 'Any') -> 'None'",
    "pretrained": "(name: 'str') -> 'Path'",
    "tune": (
        "(model: 'str', *, speed: 'float | None' = None, floor: 'str | None' = None, "
        "weights: 'str | None' = None, prompts: 'str | Path | None' = None, "
        "scorer: 'str | Callable[..., Any] | None' = None, size: 'Size | str | None' = None, "
        "backend: 'str | None' = None, quick: 'bool' = False, "
        "out: 'str | Path' = 'plan.json') -> 'StagePlan'"
    ),
    "FrescoPipeline.from_bundle": (
        "(path: 'str | os.PathLike[str]', *, trust_native_code: 'bool' = False, "
        "verify_key: 'str | Path | None' = None, lazy: 'bool' = False, contexts: 'int' = 1) "
        "-> 'FrescoPipeline'"
    ),
    "FrescoPipeline.__call__": (
        "(self, prompt: 'str | Sequence[str]', *, image: 'Source | None' = None, "
        "mask: 'Source | None' = None, "
        "seed: 'int | Sequence[int]' = 0, num_images_per_prompt: 'int' = 1, "
        "guidance: 'float | None' = None, "
        "on_step: 'OnStep | None' = None, on_stage: 'OnStage | None' = None, "
        "record_steps: 'bool' = False, cancel: 'Cancel | None' = None) -> 'Result'"
    ),
    "FrescoPipeline.close": "(self) -> 'None'",
    "FrescoError": "(given: 'str', *, expected: 'str', fix: 'str') -> 'None'",
}


def public(name: str) -> Any:
    """A public name of the package, dotted for a method."""
    value: Any = fresco_trt
    for part in name.split("."):
        value = getattr(value, part)
    return value


def public_callables() -> list[str]:
    """Every public function and class, and the public methods and properties of the classes."""
    names = [name for name in fresco_trt.__all__ if callable(getattr(fresco_trt, name))]
    classes = [name for name in names if inspect.isclass(getattr(fresco_trt, name))]
    members = [
        f"{name}.{member}"
        for name in classes
        for member, value in vars(getattr(fresco_trt, name)).items()
        if (not member.startswith("_") or member == "__call__")
        and not (inspect.ismemberdescriptor(value) or isinstance(value, str))  # a field, its value
    ]
    return names + members


def _is_submodule(name: str, value: object) -> bool:
    return isinstance(value, ModuleType) and value.__name__ == f"fresco_trt.{name}"


def test_everything_listed_is_there_and_everything_there_is_listed() -> None:
    resolved = {name: getattr(fresco_trt, name) for name in fresco_trt.__all__}
    here = {
        name
        for name, value in vars(fresco_trt).items()
        if not name.startswith("_") and not _is_submodule(name, value)
    }
    outside = {"Any", "TYPE_CHECKING", "annotations", "import_module"}
    assert here - outside == set(resolved) - {"__version__"}


def test_the_listing_is_sorted_and_what_dir_says() -> None:
    assert fresco_trt.__all__ == sorted(fresco_trt.__all__)
    assert dir(fresco_trt) == fresco_trt.__all__


def test_a_star_import_brings_exactly_the_listing() -> None:
    names: dict[str, Any] = {}
    exec("from fresco_trt import *", names)
    assert names.keys() - {"__builtins__"} == set(fresco_trt.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'stages'"):
        public("stages")


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures_stay(name: str) -> None:
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(inspect.signature(public(name))))
    assert text == SIGNATURES[name]


@pytest.mark.parametrize("name", public_callables())
def test_every_public_callable_is_documented(name: str) -> None:
    assert inspect.getdoc(public(name))


def test_plan_is_the_function_whatever_was_imported() -> None:
    code = (
        "import fresco_trt.plan.grid, fresco_trt.plan.stages\n"
        "from fresco_trt.plan.cost import plan_cost\n"
        "import fresco_trt, importlib\n"
        "importlib.import_module('fresco_trt.plan.sizes')\n"
        "print(fresco_trt.plan('flux-tiny', stages=2).nfe > 0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_subpackage_keeps_its_own_name() -> None:
    assert isinstance(import_module("fresco_trt.plan"), ModuleType)
    assert pickle.loads(pickle.dumps(StagePlan)) is StagePlan


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("name", model_names())
def test_plan_makes_a_plan_of_so_many_stages(name: str, stages: int) -> None:
    plan = fresco_trt.plan(name, stages=stages)
    assert isinstance(plan, StagePlan)
    assert (plan.model, len(plan.stages), plan.preset) == (name, stages, "balanced")


def test_one_stage_takes_its_steps_from_the_caller() -> None:
    assert fresco_trt.plan("flux-tiny", stages=1, steps=9).nfe == 9


def test_a_size_and_a_cache_may_be_spelt() -> None:
    spelt = fresco_trt.plan("flux-tiny", stages=2, size="128x64", cache="hicache,interval=2")
    cache = fresco_trt.CacheConfig(name="hicache", interval=2)
    assert spelt == fresco_trt.plan("flux-tiny", stages=2, size=(128, 64), cache=cache)


def test_shift_is_that_of_every_stage() -> None:
    plain, shifted = (fresco_trt.plan("flux-tiny", stages=1, shift=f) for f in (1.0, 9.0))
    for sigma, moved in zip(plain.stages[0].sigmas, shifted.stages[0].sigmas, strict=True):
        assert moved == pytest.approx(9.0 * sigma / (1.0 + 8.0 * sigma), abs=1e-6)
    staged = fresco_trt.plan("flux-tiny", stages=2, preset="fast", shift=4.0)
    assert staged.preset is None
    assert staged != fresco_trt.plan("flux-tiny", stages=2, preset="fast")


def test_delta_places_the_switches() -> None:
    tight, loose = (fresco_trt.plan("flux", stages=2, delta=delta) for delta in (0.01, 0.05))
    assert tight.transitions[0].sigma > loose.transitions[0].sigma
    assert tight.nfe == loose.nfe == fresco_trt.plan("flux", stages=2).nfe


def test_pretrained_names_the_folder_of_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fresco_trt.models.weights.bundled_folder", lambda model: tmp_path / model)
    (tmp_path / "flux-tiny").mkdir()
    assert fresco_trt.pretrained("flux-tiny") == tmp_path / "flux-tiny"
    with pytest.raises(WeightsNotFound, match="expected a bundled model: flux-tiny"):
        fresco_trt.pretrained("flux")


def test_pretrained_knows_no_other_name() -> None:
    with pytest.raises(UnknownModel):
        fresco_trt.pretrained("../flux-tiny")


def test_one_root_catches_what_the_package_raises() -> None:
    assert fresco_trt.FrescoError is FrescoError
    with pytest.raises(fresco_trt.FrescoError):
        fresco_trt.plan("flux-tinny", stages=3)


def test_the_version_is_one_a_package_index_takes() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+|\.dev\d+)?", fresco_trt.__version__)


def test_the_command_and_the_typing_marker_are_where_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, attribute = project["scripts"]["fresco-trt"].partition(":")
    assert callable(getattr(import_module(module), attribute))
    assert (ROOT / "fresco_trt" / "py.typed").is_file()
