"""`fresco-trt calibrate` of amax and sensitivity, and a build that takes what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.bundle.amax import read_amax
from fresco_trt.cli import main as cli
from fresco_trt.lower.calibrate import amax as measuring
from fresco_trt.lower.calibrate import sensitivity
from fresco_trt.plan.config import QuantConfig
from tests.shallow import NAME, shallow_pipeline

pytestmark = pytest.mark.usefixtures("traced_once")

# What takes long, exporting a stage's graph or measuring every group of layers, takes one stage.
ONE = ["--stages", "1", "--preset", "turbo", "--size", "64x64"]
TWO = ["--stages", "2", "--preset", "turbo", "--size", "64x64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What names the demo with a block of each kind, and its weights, to a command."""
    folder = shallow_pipeline(tmp_path_factory.mktemp("model") / "flux-tiny")
    return ["--model", NAME, "--weights", str(folder)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a prompt set of one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibration").mkdir()
    prompts = tmp_path / "calibration" / "flux-tiny-prompts.txt"
    prompts.write_text("a cat on a plain blue background\n")
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The JSON object of a command that succeeds, and nothing else on standard output."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command twice, for the object and for the table, measures once."""
    for module, name in (
        (measuring, "measure_amax"),
        (sensitivity, "measure_sensitivity"),
        (sensitivity, "error_of"),
    ):
        monkeypatch.setattr(module, name, remembering(getattr(module, name)))


def remembering(call: Callable[..., Any]) -> Callable[..., Any]:
    """What a call gave is given again, whatever it is called with."""
    given: list[Any] = []

    def remembered(*arguments: Any) -> Any:
        given.extend(() if given else (call(*arguments),))
        return given[0]

    return remembered


def test_a_build_takes_the_ranges_that_were_measured(
    model: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ["--precision", "int8,keep=*.ff.net.2"]
    found = shown(capsys, "calibrate", "--measure", "amax", *model, *ONE, *keep)
    amax = read_amax(folder / found["file"])
    assert found["kept"][-1] == "*.ff.net.2"
    assert found["inputs"].keys() == amax.layers.keys()
    assert all(len(stages) == 1 for stages in found["inputs"].values())
    assert found["attention"] == {}
    assert not any(name.endswith("ff.net.2") for name in amax.layers)
    config = QuantConfig(precision="int8", amax=Path(found["file"]), force=True)
    given = ["--precision", str(config), "--out", "b"]
    shown(capsys, "build", *model, *ONE, *given)
    record = shown(capsys, "inspect", "b")["quantized"]
    assert record["amax_sha256"] == amax.digest()
    assert record["kept"] == found["kept"]
    assert cli.main(["inspect", "b"]) == 0
    table = capsys.readouterr().out
    assert "matrix products, recipe int8-smooth" in table
    assert f"{record['ssim']:.3f}" in table


@pytest.mark.usefixtures("once")
def test_ranges_of_attention_are_measured_and_shown(
    model: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["calibrate", "--measure", "amax", *model, *TWO]
    asked += ["--precision", "fp8,recipe=fp8-attention,keep=single*.attn"]
    found = shown(capsys, *asked)
    assert read_amax(folder / found["file"]).attention.keys() == {"transformer_blocks.0.attn"}
    assert all(len(stages) == 2 for stages in found["inputs"].values())
    assert len(found["attention"]) == 3
    assert all(len(stages) == 2 for stages in found["attention"].values())
    assert cli.main(asked) == 0
    assert "11 layers, 3 operands of attention" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.usefixtures("once")
def test_sensitivity_names_every_group_and_its_pattern(
    model: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "--measure", "sensitivity", *model, *ONE]
    arguments += ["--precision", "fp8,recipe=fp8-attention"]
    found = shown(capsys, *arguments)
    assert json.loads((folder / found["file"]).read_text()) == {
        name: value for name, value in found.items() if name != "file"
    }
    errors = [each["error"] for each in found["groups"]]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0] < found["together"]
    blocks = [each for each in found["groups"] if each["group"].startswith("block ")]
    assert len(blocks) == 2
    patterns = {each["group"]: each["pattern"] for each in found["groups"]}
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        assert patterns[f"kind {stack}.attn"] == f"{stack}.*.attn"
    assert cli.main(arguments) == 0
    assert f"keep={found['groups'][0]['pattern']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["amax", "--energy", "0.5"], "--energy with --measure amax"),
        (["basis", "--precision", "int8"], "--precision with --measure basis"),
        (["amax", "--precision", "bf16"], "int8 or fp8"),
        (["amax", "--precision", "int8,recipe=fp8"], "recipe=fp8 in --precision int8"),
        (["amax", "--precision", "int8,keep=*"], "linear layers are kept"),
        (["amax", "--size", "65x65"], "65x65"),
    ],
)
def test_a_wrong_request_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(["calibrate", "--model", "flux-tiny", "--measure", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in (folder / "calibration").iterdir()] == ["flux-tiny-prompts.txt"]
