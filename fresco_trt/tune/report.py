"""The page of a tune: what won, how the candidates lie, pictures side by side, and the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.files.atomic_file import replacing
from fresco_trt.report.charts import INK, STAGE_COLOURS, Mark, legend, pareto, steps
from fresco_trt.report.html import Html, facts, folded, join, table, tag
from fresco_trt.report.page import Section, page
from fresco_trt.report.pictures import Picture, strip
from fresco_trt.tune.families import CONTROL, FAMILIES

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.tune.judge import Pixels

COLOURS: Mapping[str, str] = {
    CONTROL: INK,
    **{
        family.name: (*STAGE_COLOURS, "#f0e442", "#8c564b")[place % 8]
        for place, family in enumerate(FAMILIES)
    },
}
"""What a family is drawn in."""

SHOWN = 6
"""Pictures that are shown of each plan."""

NAMES = {"ssim": "SSIM", "perceptual": "how close it looks", "score": "score"}


def write_report(
    path: Path,
    document: Mapping[str, Any],
    plan: StagePlan,
    pictures: Mapping[str, Sequence[Pixels]],
) -> None:
    """The page of a stored document. Raises OutputNotWritable or DiskFull."""
    title = f"{document['model']}: {document['target']}"
    lead = f"{document['verdict']}. {document['command']}"
    sections = [
        Section(name="plan", title="The plan", content=_result(document, plan)),
        Section(name="speed", title="Closeness over speed", content=_charts(document)),
        Section(name="pictures", title="Pictures", content=_pictures(pictures, document)),
        Section(name="finalists", title="Who was left", content=_finalists(document)),
        Section(name="seconds", title="What a step takes", content=_seconds(document)),
    ]
    text = page(title, lead, sections, f"Made by fresco-trt {__version__}.")
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _result(document: Mapping[str, Any], plan: StagePlan) -> Html:
    best, machine = document["rows"][0], document["machine"]
    beside = document["beside"]["winner"]
    own = machine.get("gpu") or f"{machine['cores']} cores of {machine['processor']}"
    pairs = [
        ("asked for", document["target"]),
        ("reached", "yes" if document["reached"] else "no: this is the best there is"),
        ("plan", f"{best['name']}, {best['full_steps']} of {best['steps']} steps in full"),
        ("speed", f"{best['speed']:.2f}x, the sum of its steps"),
        (
            "side by side",
            f"{beside['speed']:.2f}x ({beside['low']:.2f} to {beside['high']:.2f})",
        ),
        *((NAMES[name], _with_interval(best, name)) for name in document["metrics"]),
        ("beside plain few steps", document["verdict"]),
        ("engines", f"{document['backend']} in {document['precision']}, {own}"),
    ]
    return join((facts(pairs), steps(plan)))


def _charts(document: Mapping[str, Any]) -> Html:
    charts = [
        pareto(list(_marks(document, name)), "times faster", NAMES[name])
        for name in document["metrics"]
    ]
    families = {row["family"] for row in document["rows"]}
    colours = {name: colour for name, colour in COLOURS.items() if name in families}
    told = "Ringed: the plan. Hollow: out after fewer pictures."
    return join((legend(colours), tag("div", *charts, class_="charts"), tag("p", told)))


def _marks(document: Mapping[str, Any], metric: str) -> Iterator[Mark]:
    for place, row in enumerate(document["rows"]):
        said = f"{row['name']}: {row['speed']:.2f}x, {NAMES[metric]} {row[metric]:.3f}"
        yield Mark(
            x=row["speed"],
            y=row[metric],
            group=row["family"],
            colour=COLOURS.get(row["family"], INK),
            hollow=place >= document["finalists"],
            ringed=place == 0,
            title=f"{said}, {row['pictures']} pictures",
        )


def _pictures(pictures: Mapping[str, Sequence[Pixels]], document: Mapping[str, Any]) -> Html:
    from PIL.Image import fromarray

    count = min(SHOWN, *(len(each) for each in pictures.values()))
    rows = []
    for number in range(count):
        shown = [
            Picture.of(fromarray(each[number]), f"{_label(name, document)}; picture {number + 1}")
            for name, each in pictures.items()
        ]
        rows.append(strip(shown))
    return join(rows)


def _label(name: str, document: Mapping[str, Any]) -> str:
    if name not in ("winner", "control"):
        return f"{document['reference']['steps']} steps"
    return f"{name}: {document[name]}, {document['beside'][name]['speed']:.1f}x"


def _finalists(document: Mapping[str, Any]) -> Html:
    metrics = document["metrics"]
    columns = ("plan", "speed", "steps", *(NAMES[name] for name in metrics), "above the control")
    rows = document["rows"]
    left = document["finalists"]
    out = document["left_out"]
    return join(
        (
            table(f"{document['pictures']} pictures each", columns, _rows(rows[:left], metrics)),
            folded(
                f"The other {len(rows) - left}", table("All", columns, _rows(rows[left:], metrics))
            ),
            folded(f"Left out: {len(out)}", facts(out.items())) if out else "",
        )
    )


def _rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        yield (
            row["name"],
            f"{row['speed']:.2f}",
            f"{row['full_steps']} of {row['steps']}",
            *(_with_interval(row, name) for name in metrics),
            _difference(row.get("beside_control")),
        )


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    bounds = row[f"{name}_interval"]
    around = "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
    return f"{row[name]:.3f}{around}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    around = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
    return f"{found['mean']:+.3f}{around}"


def _seconds(document: Mapping[str, Any]) -> Html:
    rows = [(kind, f"{1e3 * each:.2f}") for kind, each in document["step_seconds"].items()]
    whole = document["reference"]
    told = f"{whole['steps']} steps in full take {whole['seconds']:.3f} s."
    return join((tag("p", told), table("Milliseconds of a step, by engine", ("step", "ms"), rows)))
