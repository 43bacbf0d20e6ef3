"""The page about a bundle: what is on it, that nothing gets out or in, and what is refused."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.manifest import parse_manifest
from fresco_trt.cli import main as cli
from fresco_trt.errors import ManifestInvalid
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import make_plan
from fresco_trt.profile.files import store
from fresco_trt.profile.nsight import read_export
from fresco_trt.report import ReportRequest, charts, make_report
from fresco_trt.report.html import LONGEST, Html, tag, text
from fresco_trt.report.page import Section, page
from tests.bench.documents import document, row
from tests.browser import needs_browser, shown
from tests.profile.exports import Export, requests

ROOT = Path(__file__).parents[2]
STORED = ROOT / "bench" / "results" / "flux-tiny.json"
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></title><script>alert(1)</script>\x1b]0;x\x07"
)
_ERROR = re.compile(r"\Aerror: [^\n]+; expected [^\n]+\. Fix: [^\n]+\n\Z")


class Read(HTMLParser):
    """A page as a parser sees it: elements are closed in order, and what each has is kept."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name not in ("img", "meta"):
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.tags}

    @property
    def said(self) -> str:
        return " ".join(self.texts)


def profile(**changes: Any) -> dict[str, Any]:
    """A document of `fresco-trt profile`."""
    place = {"stage": 1, "step": 1, "part": "full", "calls": 1.0, "seconds": 0.03, "share": 0.6}
    host = {"stage": None, "step": None, "part": "host", "seconds": 0.02, "share": 0.4}
    spread = {"median": 0.05, "low": 0.04, "high": 0.06}
    return {
        "schema": 1,
        "source": "spans",
        "model": "flux-tiny",
        "requests": 5,
        "request_seconds": spread,
        "outside_engines": 0.4,
        "machine": {"processor": "a processor", "cores": 2},
        "rows": [place, place | host],
        **changes,
    }


def stored(folder: Path, value: object, name: str = "given.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def bench(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**document(*rows), "compare": "methods", **changes}


def made(out: Path, engines: Path, **options: Any) -> Read:
    """The page of a bundle, read."""
    make_report(ReportRequest(engines=engines, out=out, **options), lambda phase, done: None)
    return Read(out.read_text(encoding="utf-8"))


# --- what is on it ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(eager_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    folder = tmp_path_factory.mktemp("report")
    out = folder / "report.html"
    Image.new("RGBA", (900, 300), "teal").save(folder / "given.png")
    made(
        out,
        eager_bundle,
        bench=STORED,
        profile=stored(folder, profile()),
        pictures=(folder / "given.png",),
        prompts=("a bell on a plain blue background",),
        seed=3,
    )
    return out


def test_every_stage_engine_and_digest_is_on_it(whole: Path, eager_bundle: Path) -> None:
    page_of, bundle = Read(whole.read_text(encoding="utf-8")), open_bundle(eager_bundle)
    sections = ["plan", "pictures", "bench", "profile", "engines", "calibration"]
    found = [attributes["id"] for name, attributes in page_of.tags if name == "section"]
    assert found == sections
    manifest = bundle.manifest
    shown_digests = (*(file.sha256 for file in manifest.files), manifest.key, manifest.digest)
    for said in (*shown_digests, *(engine.name for engine in manifest.engines)):
        assert said in page_of.texts
    for stage, tokens in zip(bundle.plan.stages, bundle.plan.tokens, strict=True):
        assert str(tokens) in page_of.texts
        assert ", ".join(f"{sigma:.5g}" for sigma in stage.sigmas) in page_of.texts
    assert "none: every step runs the whole network" in page_of.texts
    assert "taylorseer, 50 steps, interval 4, diffusers" in page_of.texts


def test_pictures_are_small_and_embedded(whole: Path) -> None:
    page_of = Read(whole.read_text(encoding="utf-8"))
    pictures = [attributes for name, attributes in page_of.tags if name == "img"]
    captions = [str(each["alt"]) for each in pictures]
    assert captions[0] == "given.png"
    assert [caption.rpartition(", ")[2] for caption in captions[1:]] == [
        *("after stage 1", "after stage 2", "finished"),
    ]
    assert all("seed 3" in caption for caption in captions[1:])
    assert all(str(each["src"]).startswith("data:image/") for each in pictures)
    assert (pictures[0]["width"], pictures[0]["height"]) == ("384", "128")


def test_nothing_is_fetched_or_run(whole: Path) -> None:
    source = whole.read_text(encoding="utf-8")
    page_of = Read(source)
    assert not page_of.names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for name, attributes in page_of.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], name
        target = attributes.get("src") or attributes.get("href") or "#"
        assert target.startswith(("#", "data:image/"))
    assert not re.search(r"@import|url\(|https?:", source)
    meta = [attributes for name, attributes in page_of.tags if name == "meta"]
    policies = [each["content"] for each in meta if "http-equiv" in each]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_a_profile_is_summed_by_stage_and_part(tmp_path: Path, eager_bundle: Path) -> None:
    found = made(tmp_path / "a.html", eager_bundle, profile=stored(tmp_path, profile()))
    assert {"stage 1, step 1, full: 30 ms, 60.0%", "host: 20 ms, 40.0%"} <= set(found.texts)
    assert "outside stages" in found.texts
    assert "the median one took 50 ms, all of them 40 to 60 ms" in found.said


def test_an_nsight_export_shows_the_gpu_too(tmp_path: Path, eager_bundle: Path) -> None:
    exported = requests(Export(tmp_path / "made.sqlite"))
    given = store(read_export(exported.path, lambda phase, done: None), tmp_path / "out")
    found = made(tmp_path / "a.html", eager_bundle, profile=tmp_path / "out" / "profile.json")
    device = given["device"]
    assert {"On the GPU", *(each["name"] for each in device["kernels"])} <= set(found.texts)
    assert f"{len(device['gaps'])} gaps" in found.texts
    first = device["gaps"][0]
    assert f"{first['before']} to {first['after']}" in found.texts


def test_a_row_of_the_bundles_own_plan_is_ringed(tmp_path: Path, eager_bundle: Path) -> None:
    plan = open_bundle(eager_bundle).plan
    own = row("fresco", preset="turbo", nfe=plan.nfe)
    given = stored(tmp_path, bench(row("plain", psnr=None), own, size=[64, 64]))
    found = made(tmp_path / "a.html", eager_bundle, bench=given)
    assert "Ringed: fresco, turbo, which is the bundle's plan." in found.said
    assert "its own figures differ" not in found.said
    other = stored(tmp_path, bench(own, size=[128, 64]))
    assert "its own figures differ" in made(tmp_path / "a.html", eager_bundle, bench=other).said


def test_the_same_page_is_made_twice(tmp_path: Path, eager_bundle: Path) -> None:
    for name in ("a.html", "b.html"):
        made(tmp_path / name, eager_bundle, bench=STORED)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_mixed_plan_with_a_cache_has_its_own_words() -> None:
    plan = make_plan(model_facts("flux"), stages=3, cache="hicache,interval=2")
    drawn = charts.steps(plan)
    assert drawn.count("<rect") == plan.nfe
    assert drawn.count("bypass, ") == plan.nfe - plan.full_steps > 0


# --- a stranger's words -----------------------------------------------------------------------


SHOWN = {
    HOSTILE: HOSTILE.replace("\x1b", "?").replace("\x07", "?"),
    "&lt;b&gt;": "&lt;b&gt;",
    "\u202egnp.exe": "?gnp.exe",
    "'\"`=": "'\"`=",
    "\ud800": "?",
    "one\ntwo": "one two",
}


@pytest.mark.parametrize("given", SHOWN)
def test_a_text_is_what_it_says_and_nothing_else(given: str) -> None:
    found = Read(tag("p", given, title=given))
    assert found.names == {"p"}
    assert found.said == found.tags[0][1]["title"] == SHOWN[given]


def test_a_long_text_is_cut() -> None:
    assert len(text("a" * 10**6)) == LONGEST


def test_markup_stays_markup() -> None:
    assert tag("p", Html("<b>bold</b>"), 3 < 4) == "<p><b>bold</b>True</p>"


def hostile(value: Any) -> Any:
    """A result file with markup in every text that is free."""
    fixed = {"compare", "model", "source"}
    if isinstance(value, dict):
        return {k: each if k in fixed else hostile(each) for k, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


def hostile_page(folder: Path, engines: Path) -> Path:
    picture = folder / "<b onclick=x>&.png"
    Image.new("L", (8, 8)).save(picture)
    rows = (row("plain", preset="p", variant="v", ablation="a"), row("fresco", preset="q"))
    out = folder / "hostile.html"
    made(
        out,
        engines,
        bench=stored(folder, hostile(bench(*rows)), "bench.json"),
        profile=stored(folder, hostile(profile()), "profile.json"),
        pictures=(picture,),
    )
    return out


def test_no_text_of_a_file_becomes_markup(tmp_path: Path, eager_bundle: Path) -> None:
    found = Read(hostile_page(tmp_path, eager_bundle).read_text(encoding="utf-8"))
    assert "script" not in found.names
    assert len([name for name, _ in found.tags if name == "img"]) == 1
    assert found.said.count("owned") > 10
    assert not [key for _, each in found.tags for key in each if key.startswith("on")]


@needs_browser
def test_a_browser_shows_it_and_runs_nothing(
    tmp_path: Path, whole: Path, eager_bundle: Path
) -> None:
    for number, source in enumerate((whole, hostile_page(tmp_path, eager_bundle))):
        seen = shown(source, tmp_path / f"profile{number}")
        assert seen.console == ""
        assert "<title>flux-tiny: bundle</title>" in seen.document
        assert "<script" not in seen.document


@needs_browser
def test_the_policy_holds_where_escaping_would_not(tmp_path: Path) -> None:
    markup = Html(
        "<script>document.title='owned'</script><img src='https://example.org/x.png'>"
        "<p style='color:red'>styled</p>"
    )
    source = page("kept", "lead", [Section(name="a", title="A", content=markup)], "maker")
    (tmp_path / "page.html").write_text(source, encoding="utf-8")
    seen = shown(tmp_path / "page.html", tmp_path / "profile")
    assert "<title>kept</title>" in seen.document
    assert seen.console.count("Content Security Policy") >= 3


def test_a_bundle_with_products_and_no_errors_of_them_is_refused(eager_bundle: Path) -> None:
    raw = json.loads((eager_bundle / "manifest.json").read_bytes())
    record = {
        **dict.fromkeys(("recipe", "judged_by"), "simulation"),
        **dict.fromkeys(("ssim", "lowest", "threshold"), 0.5),
        **dict.fromkeys(("bytes", "float32_bytes", "prompts"), 1),
        "kept": [],
        "forced": False,
        "amax_sha256": "0" * 64,
        "products": {"stage1.full": {"int8": 3}},
        "errors": {"stage2.full": 0.1},
    }
    raw |= {"precision": "int8", "quantized": record}
    with pytest.raises(ManifestInvalid, match="no error of an engine"):
        parse_manifest(json.dumps(raw).encode())


# --- what is refused --------------------------------------------------------------------------


def huge(folder: Path) -> Path:
    path = folder / "huge.json"
    path.touch()
    os.truncate(path, 2**40)  # takes no room
    return path


def bomb(folder: Path) -> Path:
    """A PNG of a few bytes that says it has 60,000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path = folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))
    return path


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def changed(value: dict[str, Any], **changes: Any) -> Callable[[Path], Path]:
    return lambda folder: stored(folder, value | changes)


WRONG: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "another kind": ("--bench", lambda folder: ROOT / "bench/results/gpu.json"),
    "a plan": ("--bench", changed({}, stages=[], model="flux-tiny")),
    "a bench as a profile": ("--profile", lambda folder: STORED),
    "a profile as a bench": ("--bench", changed(profile())),
    "another model": ("--bench", changed(bench(row("plain")), model="flux")),
    "another model's profile": ("--profile", changed(profile(), model="flux")),
    "no rows": ("--bench", changed(bench())),
    "a later schema": ("--profile", changed(profile(), schema=2)),
    "a negative time": ("--profile", changed(profile(), outside_engines=-1)),
    "a text for a number": ("--bench", changed(bench(row("plain", nfe="3")))),
    "a number out of bounds": ("--bench", changed(bench(row("plain", speedup=1e300)))),
    "a list": ("--bench", written("list.json", b"[1]")),
    "truncated": ("--bench", written("cut.json", STORED.read_bytes()[:5000])),
    "not a number": ("--profile", written("nan.json", b'{"schema": NaN}')),
    "nested": ("--profile", written("deep.json", b'{"a":' * 100_000)),
    "binary": ("--bench", written("bin.json", b"\xff\xfe\x00")),
    "empty": ("--bench", written("empty.json", b"")),
    "huge": ("--bench", huge),
    "absent": ("--profile", lambda folder: folder / "nowhere.json"),
    "a folder": ("--bench", lambda folder: folder),
    "a long name": ("--picture", lambda folder: folder / ("a" * 5000)),
    "a pipe": ("--bench", fifo),
    "no picture": ("--picture", written("text.png", b"a text")),
    "half a picture": ("--picture", written("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")),
    "a bomb": ("--picture", bomb),
    "a huge picture": ("--picture", huge),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_in_one_line(
    name: str, tmp_path: Path, eager_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option, make = WRONG[name]
    out = tmp_path / "out" / "report.html"
    out.parent.mkdir()
    out.write_text("older", encoding="utf-8")
    arguments = ["report", "--engines", eager_bundle, option, make(tmp_path), "--out", out]
    assert cli.main([str(each) for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert _ERROR.match(said.err), said.err
    assert option in said.err
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert out.read_text(encoding="utf-8") == "older"


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", "3"),
        ("--trust",),
        ("--out", "report.txt"),
        ("--prompt", "a", "--seed", "-1"),
        tuple(word for _ in range(25) for word in ("--prompt", "a")),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(
    options: tuple[str, ...], eager_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "--engines", str(eager_bundle), *options]) == 2
    assert _ERROR.match(capsys.readouterr().err)


def test_the_command_says_where_the_page_is(
    tmp_path: Path, eager_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report.html"
    arguments = ("report", "--engines", str(eager_bundle), "--out", str(out))
    assert cli.main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["report"] == str(out)
    assert summary["bytes"] == out.stat().st_size
    assert summary["sections"] == ["plan", "engines", "calibration"]
    assert cli.main([*arguments]) == 0
    assert str(out) in capsys.readouterr().out
