"""`fresco-trt bench`: methods side by side, from the command line's options to the files it leaves.

Thin, and light to import: what measures, :mod:`fresco_trt.bench.job`, is imported when the command
runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import typer

from fresco_trt.cli import display
from fresco_trt.errors import IncompatibleOptions, PlanError

InstrumentName = Literal["model", "oracle"]
INSTRUMENTS: tuple[InstrumentName, ...] = get_args(InstrumentName)

Comparison = Literal["methods", "combinations"]
COMPARISONS: tuple[Comparison, ...] = get_args(Comparison)

Name = TypeVar("Name", bound=str)

SCENES, QUICK_SCENES = 64, 6
"""What is drawn unless asked otherwise; the quick ones take about 10 minutes on 2 cores, of which a
scene takes 40 seconds, the engines one minute and the peaks of memory three."""

OUT = Path("bench-out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was asked for, every default filled in but the size's."""

    model: str
    out: Path
    scenes: int
    methods: tuple[str, ...] | None
    quick: bool
    instrument: InstrumentName
    size: str | None
    weights: str | None
    backend: str
    compare: Comparison = "methods"

    @property
    def stem(self) -> str:
        """Name of the files, without their endings."""
        parts = [self.model, *(["oracle"] if self.instrument == "oracle" else [])]
        parts += [] if self.compare == "methods" else [self.compare]
        return "-".join([*parts, *(["quick"] if self.quick else [])])

    @property
    def command(self) -> str:
        """The command line that asks for this, whatever was typed."""
        return self._line({"--scenes": self.scenes})

    @property
    def request(self) -> str:
        """The command but for what may change between a killed run and the one that goes on from
        it: a model's scenes come one after another, however many are asked for. The oracle's
        captions depend on how many there are."""
        return self._line({"--scenes": self.scenes} if self.instrument == "oracle" else {})

    def _line(self, scenes: Mapping[str, int]) -> str:
        given = {
            "--model": self.model,
            "--compare": None if self.compare == "methods" else self.compare,
            "--instrument": self.instrument,
            **scenes,
            "--methods": None if self.methods is None else ",".join(self.methods),
            "--size": self.size,
            "--weights": self.weights,
            "--backend": self.backend,
            "--out": self.out,
        }
        parts = [f"{name} {value}" for name, value in given.items() if value is not None]
        return " ".join(["fresco-trt bench", *parts, *(["--quick"] if self.quick else [])])


def bench(
    model: Annotated[str, typer.Option("--model", help="Model name, e.g. flux-tiny.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = OUT,
    scenes: Annotated[
        int | None,
        typer.Option(
            help="Scenes that every method draws.",
            show_default=f"{SCENES}, or {QUICK_SCENES} with --quick",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, with commas between; plain always is.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and scenes.")] = False,
    instrument: Annotated[
        str, typer.Option(help="model, or oracle: an exact flow in place of the model.")
    ] = "model",
    size: Annotated[
        str | None, typer.Option("--size", help="Picture size WxH.", show_default="the model's")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
    ] = None,
    backend: Annotated[str, typer.Option(help="Engine library of our plans.")] = "onnxruntime",
    compare: Annotated[
        str,
        typer.Option(help="methods, or combinations of our own: stages, caches and precisions."),
    ] = "methods",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Compare speed and quality of methods side by side: JSON, table, plot and pictures."""
    options = Options(
        model=model,
        out=out,
        scenes=_scenes(scenes, quick),
        methods=None if methods is None else tuple(name.strip() for name in methods.split(",")),
        quick=quick,
        instrument=_instrument(instrument),
        size=size,
        weights=weights,
        backend=backend,
        compare=_comparison(compare, instrument),
    )
    from fresco_trt.bench.job import run
    from fresco_trt.bench.terminal import show

    with display.progress() as report:
        document = run(options, report)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
    else:
        show(document)


def _scenes(asked: int | None, quick: bool) -> int:
    scenes = (QUICK_SCENES if quick else SCENES) if asked is None else asked
    if scenes < 1:
        raise PlanError(
            f"--scenes {scenes}", expected="1 or more", fix=f"pass --scenes {QUICK_SCENES}"
        )
    return scenes


def _instrument(name: str) -> InstrumentName:
    return _one_of(INSTRUMENTS, "--instrument", name, "measure the model itself")


def _comparison(name: str, instrument: str) -> Comparison:
    if name == "combinations" and instrument == "oracle":
        raise IncompatibleOptions(
            f"--compare {name} with --instrument oracle",
            expected="--instrument model: an exact flow has no weights to quantise",
            fix="leave one of the two out",
        )
    return _one_of(COMPARISONS, "--compare", name, "put our methods beside others'")


def _one_of(known: Sequence[Name], option: str, given: str, default: str) -> Name:
    """``given`` as one of the ``known`` names; ``default`` says what happens without the option."""
    for name in known:
        if name == given:
            return name
    raise IncompatibleOptions(
        f"{option} {given}",
        expected=f"one of {', '.join(known)}",
        fix=f"leave {option} out to {default}",
    )
