"""What the command line shows: results on standard output, progress and warnings on the other."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fresco_trt.plan.caching import spelling_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rich.progress import Progress, TaskID

    from fresco_trt.run.sampler import Step

    Report = Callable[[str, float], None]


def _out() -> Console:
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    _out().print(escape(text))


def error(message: str) -> None:
    """Print an error on standard error."""
    _err().print(f"[bold red]error:[/] {escape(message)}")


def show_warning(
    message: Warning | str, category: type[Warning], *where: object, **more: object
) -> None:
    """`warnings.showwarning` for people: the sentence in one line, not the source line."""
    sentence = " ".join(str(message).split())
    _err().print(f"[yellow]warning:[/] {escape(sentence)}")


@contextmanager
def progress() -> Iterator[Report]:
    """A `report(phase, fraction)` callable drawing one bar for each phase.

    On standard error, and only where that is a terminal.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = _err()
    if not console.is_terminal:
        yield lambda phase, fraction: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:
        yield lambda phase, fraction: _advance(bars, tasks, phase, fraction)


def _advance(bars: Progress, tasks: dict[str, TaskID], phase: str, fraction: float) -> None:
    if phase not in tasks:
        for earlier in tasks.values():  # phases follow one another; not all say when they end
            bars.update(earlier, completed=1.0)
        tasks[phase] = bars.add_task(escape(phase), total=1.0)
    bars.update(tasks[phase], completed=fraction)


def step_reporter(report: Report, stages: int) -> Callable[[Step], None]:
    """A step callback that reports stage, step and progress under one bar."""

    def on_step(step: Step) -> None:
        report(f"drawing in {stages} stages", (step.step + 1) / step.steps_total)

    return on_step


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    _out().print(table)


def plan_table(summary: Mapping[str, Any]) -> None:
    """A plan's stages, what is promoted between them, and the cost beside the baseline."""
    width, height = summary["size"]
    rows = [
        (
            number,
            f"{stage['grid']['width']}x{stage['grid']['height']}",
            stage["tokens"],
            stage["steps"],
            f"{stage['sigma_start']:.3f} to {stage['sigma_end']:.3f}",
            f"{tflops:.3g}",
        )
        for number, (stage, tflops) in enumerate(
            zip(summary["stages"], summary["stage_tflops"], strict=True), start=1
        )
    ]
    title = f"{summary['model']} {width}x{height}, {len(rows)} stages"
    _table(title, ("stage", "latent", "tokens", "steps", "sigma", "TFLOP"), rows)
    for line in _mixed_lines(summary):
        _say(line)
    for line in _cached_lines(summary):
        _say(line)
    baseline = summary["baseline"]
    solver = "" if summary["solver"] == "euler" else f"{summary['solver']} "
    _say(
        f"{summary['nfe']} {solver}steps, {summary['tflops']:.4g} TFLOP; plain {baseline['steps']} "
        f"steps {baseline['tflops']:.4g} TFLOP: {summary['flops_ratio']:.2f}x fewer"
    )


def _cached_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Which steps are skipped, what predicts them, and what that keeps in memory."""
    cache = summary["cache"]
    if cache is None:
        return
    actions = ",".join(spelling_of(stage["actions"]) for stage in summary["stages"])
    yield (
        f"{summary['full_steps']} of {summary['nfe']} steps in full ({actions}), the others "
        f"predicted by {cache['name']} of order {cache['order']}; its state takes at most "
        f"{summary['cache_bytes'] / 1e6:.3g} MB"
    )


def _mixed_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """For each mixed stage its tokens of either size, and the rules that chose the fine ones."""
    pairs = zip(summary["stages"][1:], summary["transitions"], strict=True)
    for number, (stage, transition) in enumerate(pairs, start=2):
        rules = [f"{each['count']} by {each['rule']}" for each in transition["promotions"]]
        if rules:
            fine = 4 * stage["promoted"]
            yield (
                f"stage {number} is mixed: {stage['tokens'] - fine} coarse + {fine} fine tokens, "
                f"positions {_numbered(summary['positions'])}; promoted {', then '.join(rules)} "
                f"over {transition['window']} steps"
            )


def _numbered(positions: str) -> str:
    return "on each query's own grid" if positions == "aligned" else f"in {positions} units"


def dry_run_table(summary: Mapping[str, Any]) -> None:
    """What a build would do, engine by engine."""
    for draft in summary["builds"]:
        rows = [(e["name"], e["tokens"], e["latents"]) for e in draft["engines"]]
        title = f"{draft['out']} ({draft['backend']}, {draft['precision']})"
        _table(title, ("engine", "tokens", "latents"), rows)
        _say(f"{draft['state']}\nreuse: {draft['reuse']}")


def built_table(summary: Mapping[str, Any]) -> None:
    """The bundles that a build left."""
    for bundle in summary["bundles"]:
        _say(
            f"{bundle['folder']}: {bundle['state']}, {len(bundle['engines'])} engines, "
            f"{bundle['bytes'] / 1e6:.1f} MB ({bundle['backend']}), {bundle['seconds']:.1f} s"
        )


def generated_table(summary: Mapping[str, Any]) -> None:
    """Where a picture is and where its time went."""
    seconds = summary["seconds"]
    stages: dict[int, list[float]] = {}
    for step in summary["steps"]:
        stages.setdefault(step["stage"], []).append(step["seconds"])
    rows = [("text", "", f"{seconds['text']:.3f}")]
    rows += [(f"stage {k}", str(len(v)), f"{sum(v):.3f}") for k, v in stages.items()]
    rows += [("decode", "", f"{seconds['decode']:.3f}"), ("total", "", f"{seconds['total']:.3f}")]
    _table(f"{summary['model']} on {summary['backend']}", ("part", "steps", "seconds"), rows)
    host = seconds["denoise"] - seconds["engines"]
    share = 100 * host / seconds["denoise"]
    _say(f"denoise {seconds['denoise']:.3f} s, {share:.2f}% outside engines")
    for path in (*summary["previews"], summary["image"]):
        _say(path)


def verify_table(summary: Mapping[str, Any]) -> None:
    """Error of every engine output, then of the picture."""
    measures = ("max", "relative", "cosine")
    rows = [
        (e["engine"], e["output"], *("inf" if e[m] is None else f"{e[m]:.1e}" for m in measures))
        for e in summary["engines"]
    ]
    _table("engine against eager", ("engine", "output", "max", "relative", "1 - cosine"), rows)
    verdict = "passed" if summary["passed"] else "FAILED"
    _say(f"picture: largest pixel difference {summary['pixels']} of 255; {verdict}")


def manifest_table(summary: Mapping[str, Any]) -> None:
    """A bundle's manifest for people."""
    sizes = {file["path"]: file["bytes"] for file in summary["files"]}
    rows = [
        (engine["name"], path, f"{sizes[path] / 1e6:.2f} MB")
        for engine in summary["engines"]
        for path in engine["files"]
    ]
    backend, plan = summary["backend"], summary["plan"]
    _table(f"{summary['model']['name']} bundle", ("engine", "file", "size"), rows)
    _say(
        f"{plan['size'][0]}x{plan['size'][1]}, {plan['nfe']} steps, {summary['precision']}, "
        f"{backend['name']} ({backend['library']} {backend['library_version']}) "
        f"{' '.join(backend['targets'])}\n"
        f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, all digests right\n"
        f"weights {summary['model']['weights_sha256'][:16]}, key {summary['key'][:16]}"
    )


def doctor_table(summary: Mapping[str, Any]) -> None:
    """What each backend can do here, and what would add the rest."""
    rows = [
        (
            b["name"],
            "yes" if b["builds"] else "no",
            "yes" if b["runs"] else "no",
            b["version"] or "-",
            "; ".join(f"{what}: {fix}" for what, fix in zip(b["missing"], b["fixes"], strict=True)),
        )
        for b in summary["backends"]
    ]
    machine = summary["machine"]
    title = f"{machine['system']}, Python {machine['python']}, GPU: {machine['gpu'] or 'none'}"
    _table(title, ("backend", "builds", "runs", "version", "missing here, and what adds it"), rows)
    bundled = [model["name"] for model in summary["models"] if model["bundled_weights"]]
    _say(f"models with bundled weights: {', '.join(bundled) or 'none'}")


def spectrum_table(summary: Mapping[str, Any]) -> None:
    """A measured spectrum at every doubling of the frequency, and the law fitted to all of it."""
    rows, fit = summary["spectrum"], summary["fit"]
    width, height = summary["size"]
    octaves = [row for row in rows if (row["frequency"] & (row["frequency"] - 1)) == 0]
    _table(
        f"{summary['model']} {width}x{height}, {summary['pictures']['count']} pictures",
        ("cycles", "power", "standard error", "power law"),
        [
            (
                row["frequency"],
                f"{row['power']:.4g}",
                f"{row['error']:.2g}",
                f"{summary['amplitude'] * row['frequency'] ** -summary['beta']:.4g}",
            )
            for row in octaves
        ],
    )
    _say(
        f"P(w) = {summary['amplitude']:g} * w^-{summary['beta']:g}, fitted from {fit['low']} to "
        f"{fit['high']} cycles: r2 {fit['r2']:.3f}, at worst {fit['factor']:.2f}x off\n"
        f"{summary['file']}"
    )


def basis_table(summary: Mapping[str, Any]) -> None:
    """The principal directions that were kept, and what each holds of the features' energy."""
    shares, held = summary["shares"], 0.0
    rows = []
    for number, share in enumerate(shares, start=1):
        held += share
        if number <= 8 or number == len(shares):
            rows.append((number, f"{share:.1%}", f"{held:.1%}"))
    _table(
        f"{summary['model']}: {summary['rank']} principal directions",
        ("direction", "energy", "up to it"),
        rows,
    )
    _say(
        f"{summary['energy']:.0%} of the energy asked for, {summary['prompts']} prompts\n"
        f"{summary['file']}"
    )


def skips_table(summary: Mapping[str, Any]) -> None:
    """For each tolerance the actions to pass, and the largest error that was let through."""
    rows = [
        (
            f"{each['tolerance']:g}",
            ",".join(each["actions"]),
            f"{each['full_steps']} of {summary['steps']}",
            _worst_skip(each),
        )
        for each in summary["skips"]
    ]
    title = (
        f"{summary['model']}, {summary['stages']} stages, {summary['preset']}: "
        f"steps that {summary['cache']['name']} may answer"
    )
    _table(title, ("tolerance", "--actions", "full steps", "worst skipped"), rows)
    _say(f"{summary['prompts']} prompts\n{summary['file']}")


def _worst_skip(each: Mapping[str, Any]) -> str:
    pairs = [
        (letter, error)
        for word, errors in zip(each["actions"], each["errors"], strict=True)
        for letter, error in zip(word, errors, strict=True)
    ]
    taken = [error for letter, error in pairs if letter == "B"]
    return f"{max(taken):.1%}" if taken else "none"
