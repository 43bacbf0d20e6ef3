"""Stored results as the Markdown that the documentation shows; a test keeps the two the same.

python -m bench.tables            prints them
python -m bench.tables --write    puts those of bench.gpu into docs/results.md, and those of
                                  bench.serving and bench.stress into docs/serve.md, those of
                                  bench.editing into docs/edit.md, that of bench.fitness into
                                  docs/demo.md, and those of bench.video into docs/video.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.editing.tables import editing_tables, quantised_tables
from bench.fitness.tables import fitness_command, fitness_table, fitness_verdict
from bench.serving_tables import serving_table, stress_table
from bench.video.tables import clips_table, summary
from fresco_trt.bench.figures import has_interval
from fresco_trt.bench.table import bench_head, bench_row, bench_table, how, interval, named, number

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
SERVE_PAGE = PAGE.with_name("serve.md")
EDIT_PAGE = PAGE.with_name("edit.md")
DEMO_PAGE = PAGE.with_name("demo.md")
VIDEO_PAGE = PAGE.with_name("video.md")

GPU_RESULTS = ("gpu", "gpu-fp8", "gpu-fp8-rowwise")
GPU_MARKS = "<!-- of bench.gpu -->", "<!-- end of bench.gpu -->"
SERVING_MARKS = "<!-- of bench.serving -->", "<!-- end of bench.serving -->"
STRESS_MARKS = "<!-- of bench.stress -->", "<!-- end of bench.stress -->"
EDITING_MARKS = "<!-- of bench.editing -->", "<!-- end of bench.editing -->"
QUANTISED_MARKS = "<!-- of bench.editing --quant -->", "<!-- end of bench.editing --quant -->"
FITNESS_MARKS = "<!-- of bench.fitness -->", "<!-- end of bench.fitness -->"
VIDEO_MARKS = "<!-- of bench.video -->", "<!-- end of bench.video -->"
"""Around the tables of a page that --write replaces."""


def main_job_table(document: dict[str, Any]) -> str:
    """One row a method of `main-job.json`, in its order, and a line on everything else in it."""
    lines = [
        "| method | denoise seconds, median (low to high) | speed-up over diffusers, 50 steps "
        "| prompt score | PSNR to it, dB |",
        "|---|--:|--:|--:|--:|",
        *(_main_job_row(row) for row in document["rows"]),
    ]
    machine, cold = document["machine"], document["cold_start"]
    lines += [
        "",
        f"{document['scenes']} captions, model `{document['model']}` at 256x256, float32, ONNX "
        f"Runtime {machine['onnxruntime']}, {machine['cores']} cores of {machine['processor']}. "
        f"Build {document['build_seconds']:.0f} s; a fresh process from its start to a written "
        f"picture {cold['seconds']:.1f} s at {cold['peak_mib']:.0f} MiB; `import fresco_trt` "
        f"{1000 * document['import_seconds']['median']:.0f} ms.",
    ]
    return "\n".join(lines)


def _main_job_row(row: dict[str, Any]) -> str:
    seconds, speedup = row["denoise_seconds"], row["speedup"]
    psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f}"
    return (
        f"| {row['method']} | {seconds['median']:.2f} ({seconds['low']:.2f} to "
        f"{seconds['high']:.2f}) | {speedup['median']:.2f} | {row['score']:.2f} | {psnr} |"
    )


def methods_table(document: dict[str, Any]) -> str:
    """Every point of a document, and the ablations apart."""
    return f"{bench_table(document)}\n\n{ablation_table(document)}"


def combinations_table(document: dict[str, Any]) -> str:
    """One row a combination of model, stages, cache and precision, and a line on how it was run.

    Where a machine only simulates a precision there are no seconds: the speed-up is then that of
    the FLOPs alone, and says so.
    """
    rows = [row for row in document["rows"] if row["method"] != "plain"]
    heads = ("model", "steps", "cache", "precision", "speed-up", "fewer FLOPs", "score", "SSIM")
    return "\n".join(
        [
            f"| {' | '.join((*heads, 'SSIM to the same unquantised'))} |",
            f"|---|---|---|---|{'--:|' * 5}",
            *(_combination_row(row) for row in rows),
            "",
            how(document),
        ]
    )


def _combination_row(row: dict[str, Any]) -> str:
    speedup = interval(row, "speedup", 2) or f"{row['flops_ratio']:.2f} by FLOPs"
    cells = (
        row["model"],
        row["preset"],
        row["variant"],
        row["precision"],
        speedup,
        number(row["flops_ratio"], 2),
        interval(row, "score", 2),
        number(row["ssim"], 3),
        number(row["twin_ssim"], 3),
    )
    return f"| {' | '.join(cells)} |"


def composition_table(document: dict[str, Any]) -> str:
    """The same rows without intervals: one line a model, its steps and a precision, and a column
    for each cache, empty where stages are too short for it.
    """
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in document["rows"]:
        if row["method"] != "plain":
            key = (row["model"], row["preset"], row["precision"])
            lines.setdefault(key, {})[row["variant"].split(",")[0]] = _composition_cell(row)
    caches = list(dict.fromkeys(cache for cells in lines.values() for cache in cells))
    return "\n".join(
        [
            f"| {' | '.join(['model', 'steps', 'precision', *caches])} |",
            f"|---|---|---|{'---|' * len(caches)}",
            *(
                f"| {' | '.join([*key, *(cells.get(cache, '') for cache in caches)])} |"
                for key, cells in lines.items()
            ),
        ]
    )


def _composition_cell(row: Mapping[str, Any]) -> str:
    """Speed-up, score and SSIM; behind them the SSIM to the same unquantised."""
    measured, flops = row["speedup"], row["flops_ratio"]
    speed = f"({flops:.1f}x)" if measured is None else f"{measured:.1f}x"
    twin = "" if row["twin_ssim"] is None else f", {row['twin_ssim']:.3f}"
    return f"{speed}, {row['score']:.2f}, {row['ssim']:.2f}{twin}"


def ablation_table(document: dict[str, Any]) -> str:
    """The ablations of a bench's document below the preset that each changes one thing of."""
    changed = [row for row in document["rows"] if row["ablation"]]
    names = {(row["method"], row["preset"]) for row in changed}
    bases = [
        row
        for row in document["rows"]
        if (row["method"], row["preset"]) in names and not row["ablation"]
    ]
    return "\n".join(
        [
            *bench_head("changed"),
            *(bench_row(named(row, "method", "preset"), row) for row in bases),
            *(bench_row(row["ablation"], row) for row in changed),
        ]
    )


def text_table(document: dict[str, Any]) -> str:
    """A row for each text of each preset, and a line on how it was run."""
    rows = [row for row in document["rows"] if row["method"] != "plain"]
    heads = ("preset", "text", "fewer FLOPs", "score", "SSIM", "SSIM to the whole text's")
    return "\n".join(
        [
            f"| {' | '.join(heads)} |",
            f"|---|---|{'--:|' * 4}",
            *(f"| {' | '.join(_text_cells(row))} |" for row in rows),
            "",
            how(document),
        ]
    )


def _text_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["preset"],
        row["variant"],
        number(row["flops_ratio"], 2),
        interval(row, "score", 2),
        interval(row, "ssim", 3),
        number(row["twin_ssim"], 3),
    )


def caching_table(document: dict[str, Any]) -> str:
    """Every cache of a bench's document, ours and the peers', below what it is to speed up."""
    cached = [row for row in document["rows"] if not row["ablation"] and _is_cached(row)]
    presets = {row["preset"] for row in cached if row["method"] == "fresco"}
    bases = [
        row
        for row in document["rows"]
        if row["method"] == "plain"
        or (row["method"] == "fresco" and row["preset"] in presets and _is_bare(row))
    ]
    rows = sorted(
        [*bases, *cached],
        key=lambda row: (_CACHING.index(row["method"]), row["preset"] or "", not _is_bare(row)),
    )
    return "\n".join(
        [
            *bench_head("method"),
            *(bench_row(named(row, "method", "preset", "variant"), row) for row in rows),
        ]
    )


_CACHING = ("plain", "taylorseer", "first-block", "cache-dit", "cache", "fresco")
"""Methods in the order of the caching table; those between plain and fresco are caches."""


def _is_cached(row: Mapping[str, Any]) -> bool:
    on_a_preset = row["method"] == "fresco" and has_interval(row)
    return row["method"] in _CACHING[1:-1] or on_a_preset


def _is_bare(row: Mapping[str, Any]) -> bool:
    return row["variant"] is None and row["ablation"] is None


def frontier_table(document: dict[str, Any]) -> str:
    """At each speed the best that ours, the peers and fewer plain steps reach at least that fast.

    Speed is measured where the document has seconds, and FLOPs saved where it has none.
    """
    axis = next(iter(document["frontier"]))
    entries = document["frontier"][axis]
    heads = [f"{quality}, {kind}" for quality in BEST for kind in FRONTIER_KINDS]
    least = "at least" if axis == "speedup" else "FLOPs saved, at least"
    return "\n".join(
        [
            f"| {' | '.join([least, *heads])} |",
            f"|--:|{'---|' * len(heads)}",
            *(_frontier_row(entry, axis) for entry in entries),
        ]
    )


FRONTIER_KINDS = ("fresco", "peer", "few-step")
BEST: Mapping[str, int] = {"score": 2, "ssim": 3}
"""Qualities and the digits they are printed with."""


def _frontier_row(entry: Mapping[str, Any], axis: str) -> str:
    cells = [
        _best_cell(entry[kind][quality], digits)
        for quality, digits in BEST.items()
        for kind in FRONTIER_KINDS
    ]
    return f"| {' | '.join([f'{entry[axis]:g}x', *cells])} |"


def _best_cell(best: Mapping[str, Any] | None, digits: int) -> str:
    if best is None:
        return "none so fast"
    point = str(best["point"]).removeprefix("fresco, ").removeprefix("few-step, ")
    return f"{best['value']:.{digits}f} ({point})"


def stored(name: str) -> dict[str, Any]:
    """A result file of the repository's bench/results/ by its stem."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def result_tables() -> Iterator[str]:
    """Every table that docs/results.md has to show, of the results that are stored."""
    from bench.found_presets import presets_table

    yield main_job_table(stored("main-job"))
    if (RESULTS / "flux-tiny-tuned.json").is_file():
        from bench.presets import tuned_table  # which imports torch

        yield tuned_table(stored("flux-tiny-tuned"))
    yield presets_table([stored(f"flux-tiny-{stages}stage-presets") for stages in (2, 3)])
    for name in ("flux-tiny", "flux-tiny-oracle", "flux-tiny-ablations"):
        if (RESULTS / f"{name}.json").is_file():
            document = stored(name)
            if name != "flux-tiny-ablations":
                yield frontier_table(document)
            if any(row["ablation"] for row in document["rows"]):
                yield ablation_table(document)
    # The command's own document had all caches before they were a study.
    caches = "flux-tiny-caches" if (RESULTS / "flux-tiny-caches.json").is_file() else "flux-tiny"
    yield caching_table(stored(caches))
    if (RESULTS / "flux-tiny-combinations.json").is_file():
        yield composition_table(stored("flux-tiny-combinations"))
    if (RESULTS / "flux-tiny-text.json").is_file():
        yield text_table(stored("flux-tiny-text"))
    yield from gpu_tables()


def gpu_tables() -> Iterator[str]:
    """Those of the runs of bench.gpu that are stored, each as it prints them."""
    from bench.gpu.report import tables_of

    for name in GPU_RESULTS:
        if (RESULTS / f"{name}.json").is_file():
            yield from tables_of(stored(name))


def serving_tables() -> Iterator[str]:
    """That of bench.serving."""
    yield serving_table(stored("serving"))


def stress_tables() -> Iterator[str]:
    """That of bench.stress, if it is stored."""
    if (RESULTS / "stress.json").is_file():
        yield stress_table(stored("stress"))


def with_gpu_tables(page: str) -> str:
    """A page with the tables of bench.gpu between its two marks, in place of what was there."""
    return _with_tables(page, GPU_MARKS, gpu_tables())


def with_server_tables(page: str) -> str:
    """As :func:`with_gpu_tables`, those of bench.serving and bench.stress."""
    with_serving = _with_tables(page, SERVING_MARKS, serving_tables())
    return _with_tables(with_serving, STRESS_MARKS, stress_tables())


def with_editing_tables(page: str) -> str:
    """As :func:`with_gpu_tables`, those of bench.editing, as far as they are stored."""
    for name, marks, tables_of in (
        ("editing", EDITING_MARKS, editing_tables),
        ("editing-int8", QUANTISED_MARKS, quantised_tables),
    ):
        is_stored = (RESULTS / f"{name}.json").is_file()
        page = _with_tables(page, marks, tables_of(stored(name)) if is_stored else iter(()))
    return page


def with_demo_tables(page: str) -> str:
    """As :func:`with_gpu_tables`, that of bench.fitness and what it comes to."""
    document = stored("demo-fitness")
    parts = fitness_table(document), fitness_verdict(document), fitness_command(document)
    return _with_tables(page, FITNESS_MARKS, iter(parts))


def video_tables(document: dict[str, Any]) -> Iterator[str]:
    """All that the page shows of a document of bench.video."""
    yield clips_table(document)
    yield frontier_table(document)
    yield summary(document)


def with_video_tables(page: str) -> str:
    """As :func:`with_gpu_tables`, those of bench.video, if they are stored."""
    is_stored = (RESULTS / "video.json").is_file()
    return _with_tables(page, VIDEO_MARKS, video_tables(stored("video")) if is_stored else iter(()))


def _with_tables(page: str, marks: tuple[str, str], tables: Iterator[str]) -> str:
    before, after = page.split(marks[0])[0], page.split(marks[1])[1]
    return "\n\n".join([before + marks[0], *tables, marks[1] + after])


def main(
    write: Annotated[
        bool, typer.Option("--write", help="Put those between marks into docs/.")
    ] = False,
) -> None:
    """Print every table, or put those between marks in their place."""
    if not write:
        print(*result_tables(), *serving_tables(), *stress_tables(), sep="\n\n")
        return
    for page, renewed in (
        (PAGE, with_gpu_tables),
        (SERVE_PAGE, with_server_tables),
        (EDIT_PAGE, with_editing_tables),
        (DEMO_PAGE, with_demo_tables),
        (VIDEO_PAGE, with_video_tables),
    ):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
