"""Stored figures as the Markdown that the README shows; a test keeps the two the same.

python -m fresco_trt.bench.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "bench" / "results"


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


def fitness_table(document: dict[str, Any]) -> str:
    """One row a plain operating point of `demo-fitness.json`, with 95% intervals."""
    lines = [
        "| plain pipeline | prompt score (95%) | Frechet distance to renders (95%) |",
        "|---|--:|--:|",
        *(
            f"| {row['name']} | {row['score']:.2f} ({row['score_low']:.2f} to "
            f"{row['score_high']:.2f}) | {row['distance']:.1f} ({row['distance_low']:.1f} to "
            f"{row['distance_high']:.1f}) |"
            for row in document["rows"]
        ),
    ]
    return "\n".join(lines)


def stored(name: str) -> dict[str, Any]:
    """A result file of the repository's bench/results/ by its stem."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    print(main_job_table(stored("main-job")), fitness_table(stored("demo-fitness")), sep="\n\n")
