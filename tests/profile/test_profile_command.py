"""`fresco-trt profile`: what it draws, shows and leaves, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco_trt.cli import main as cli
from fresco_trt.errors import IncompatibleOptions, PlanError, ProfileError, ProfilerUnavailable
from fresco_trt.profile import job, nsys, recorded
from fresco_trt.profile.files import DOCUMENT, TIMELINE, TRACE
from fresco_trt.profile.options import Options
from tests.profile.exports import Export, requests

PLOTS = find_spec("matplotlib") is not None
FILES = {DOCUMENT, TRACE} | ({TIMELINE} if PLOTS else set())


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fresco-trt profile` with arguments, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(job, "WARM_UP", 1)

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = cli.main(["profile", *map(str, arguments)])
        return Ran(code, *capsys.readouterr())

    return call


def refused(ran: Ran) -> str:
    """One printable line, exit code 2, and nothing left in the folder."""
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.strip().isprintable()
    assert not list(Path().iterdir())
    return ran.err


# --- with engines -----------------------------------------------------------------------------


def test_requests_are_drawn_shown_and_stored(run: Any, eager_bundle: Path) -> None:
    ran = run("--engines", eager_bundle, "--requests", 2, "--prompt", "a red apple")
    assert ran.code == 0, ran.err
    assert {path.name for path in Path("profile-out").iterdir()} == FILES
    stored = json.loads(Path("profile-out", DOCUMENT).read_text())
    assert (stored["requests"], stored["drawn_by"], stored["waits_for_device"]) == (
        2,
        "steps",
        False,
    )
    steps = [row for row in stored["rows"] if row["part"] in ("full", "bypass")]
    assert len(steps) == stored["nfe"]
    assert {row["stage"] for row in steps} == {1, 2, 3}
    assert sum(row["share"] for row in stored["rows"]) == pytest.approx(1)
    # The table has a line a step, and its shares add up to all as they are printed.
    assert ran.out.count("full") >= stored["nfe"]
    shares = [float(each) for each in re.findall(r"(\d+\.\d)% *│", ran.out)]
    assert sum(shares) == pytest.approx(100.0, abs=1e-6)
    inside, outside = (
        float(each) for each in re.findall(r"engines (\S+)%, outside (\S+)%", ran.out)[0]
    )
    assert inside + outside == pytest.approx(100)
    assert (str(Path("profile-out", TIMELINE)) in ran.out) == PLOTS


def test_json_is_the_stored_document(run: Any, tmp_path: Path) -> None:
    made = requests(Export(tmp_path / "made.sqlite"), count=1)
    ran = run("--from-nsys", made.path, "--out", "there", "--json")
    assert json.loads(ran.out) == json.loads(Path("there", DOCUMENT).read_text())


def test_stages_that_nothing_replays_have_no_launch(run: Any, eager_bundle: Path) -> None:
    said = refused(run("--engines", eager_bundle, "--by", "stages"))
    assert "--by stages with engines of eager" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "a profile of nothing"),
        (("--nsys",), "a profile of --nsys"),
        (("--engines", "a", "--from-nsys", "b"), "--engines and --from-nsys"),
        (("--from-nsys", "b", "--nsys"), "--from-nsys and --nsys"),
        (("--from-nsys", "b", "--seed", "3"), "an export beside options"),
        (("--from-nsys", "b", "--trust"), "an export beside options"),
        (("--engines", "nowhere"), "nowhere"),
        (("--from-nsys", "nowhere.sqlite"), "nowhere.sqlite cannot be read"),
        (("--engines", "a", "--requests", "0"), "--requests 0"),
        (("--engines", "a", "--by", "layers"), "--by layers"),
        (("--engines", "a", "--seed", "-1"), "seed -1"),
        (("--engines", "a", "--trust", "--verify-key", "b"), "--trust beside --verify-key"),
        (("--engines", "a", "--nsys"), "--nsys on a machine without nsys"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_in_a_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], words: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert words in refused(run(*arguments))


def test_where_nothing_can_be_written_nothing_is_drawn(run: Any) -> None:
    Path("file").touch()
    ran = run("--engines", "nowhere", "--out", "file")
    assert ran.code == 2
    assert "file" in ran.err
    assert "--out" in ran.err


# --- from an export ---------------------------------------------------------------------------


def test_an_export_is_read_shown_and_stored(run: Any, tmp_path: Path) -> None:
    made = requests(Export(tmp_path / "made.sqlite"))
    ran = run("--from-nsys", made.path)
    assert ran.code == 0, ran.err
    assert {path.name for path in Path("profile-out").iterdir()} == FILES
    assert "void axpy<float>()" in ran.out
    assert "gaps of the GPU" in ran.out
    assert "host, by NVTX ranges of 2 requests" in ran.out


def test_an_export_without_ranges_says_so(run: Any, tmp_path: Path) -> None:
    made = requests(Export(tmp_path / "made.sqlite"), count=1)
    with made.connected() as file:
        file.execute("DROP TABLE NVTX_EVENTS")
    ran = run("--from-nsys", made.path, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert "no NVTX range" in found["notes"][0]
    assert found["device"]["kernels"]
    assert found["rows"] == []


def test_what_is_no_export_leaves_nothing(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite"
    path.write_bytes(requests(Export(path), count=1).path.read_bytes()[:5000])
    assert "truncated" in refused(run("--from-nsys", path))


# --- under nsys -------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has all that a recording needs."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(nsys, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


class Programs:
    """Runs nothing, and leaves what nsys would."""

    def __init__(self, *leaves: str) -> None:
        self.commands: list[list[str]] = []
        self.leaves = leaves

    def __call__(self, command: Sequence[str]) -> None:
        self.commands.append(list(command))
        target = next(each for each in command if each.startswith("--output="))
        path = Path(target.removeprefix("--output="))
        if command[1] == "profile":
            path = path.with_suffix(".nsys-rep")  # which nsys appends
        if path.name in self.leaves:
            path.write_bytes(b"made")


def test_a_recording_has_the_flags_and_leaves_report_and_export(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = Programs(nsys.REPORT, nsys.EXPORT)
    options = Options(engines=Path("engines/apple"), requests=2, verify_key=Path("key.pem"))
    assert nsys.record(options, tmp_path, programs) == tmp_path / nsys.EXPORT
    recording, exporting = programs.commands
    assert recording[:2] == ["/opt/nsys", "profile"]
    assert {
        "--trace=cuda,nvtx,osrt",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=node",
    } <= set(recording)
    assert recording[-4:-1] == [sys.executable, "-m", "fresco_trt.profile.recorded"]
    assert recorded.options_of(json.loads(recording[-1])) == options
    assert exporting[:3] == ["/opt/nsys", "export", "--type=sqlite"]
    assert {path.name for path in tmp_path.iterdir()} == {nsys.REPORT, nsys.EXPORT}


def test_a_recording_that_fails_leaves_nothing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"left no profile\.sqlite"):
        nsys.record(Options(engines=Path("a")), tmp_path, Programs(nsys.REPORT))
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_is_told_with_its_last_words() -> None:
    words = "import sys; print('first'); print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ProfileError, match=r"ended with 3: why") as told:
        nsys._run([sys.executable, "-c", words])
    assert told.value.exit_code == 1
    with pytest.raises(ProfileError, match=r"'nowhere profile' does not start"):
        nsys._run(["/nowhere", "profile"])


@pytest.mark.parametrize("lack", ["nsys", "nvtx", "GPU"])
def test_what_a_recording_lacks_is_named(machine: pytest.MonkeyPatch, lack: str) -> None:
    if lack == "nsys":
        machine.setattr(shutil, "which", lambda name: None)
    if lack == "nvtx":
        machine.setattr(nsys, "find_spec", lambda name: None)
    if lack == "GPU":
        machine.setattr(torch.cuda, "is_available", lambda: False)
    programs = Programs()
    with pytest.raises(ProfilerUnavailable, match=lack):
        nsys.record(Options(engines=Path("a")), Path("never"), programs)
    assert programs.commands == []


def test_the_recorded_process_warms_up_before_its_capture_range(
    monkeypatch: pytest.MonkeyPatch, eager_bundle: Path
) -> None:
    told: list[str] = []

    class Runtime:
        cudaProfilerStart = staticmethod(lambda: told.append("start"))
        cudaProfilerStop = staticmethod(lambda: told.append("stop"))

    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(recorded, "warm_up", lambda *given: told.append("warm up"))
    monkeypatch.setattr(recorded, "draw", lambda *given: told.append("draw"))
    options = Options(engines=eager_bundle)
    given = nsys._program(options)[-1]
    assert recorded.main(given) == 0
    assert told == ["warm up", "start", "draw", "stop"]


def test_the_recorded_process_tells_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert recorded.main(nsys._program(Options(engines=Path("nowhere")))[-1]) == 2
    assert "nowhere" in capsys.readouterr().err


# --- options ----------------------------------------------------------------------------------


def test_options_are_checked_before_anything_is_loaded() -> None:
    options = Options(engines=Path("a"))
    for requests_ in (0, -1, 10_001):
        with pytest.raises(PlanError, match="--requests"):
            replace(options, requests=requests_)
    with pytest.raises(IncompatibleOptions, match="--by"):
        replace(options, by="layers")
