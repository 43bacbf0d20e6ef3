"""Documents as the tests of tables make them up, and a table's cells."""

from __future__ import annotations

from typing import Any

KEYS = ("speedup", "score", "ssim", "distance")


def row(method: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"{key}{end}": value
        for key in KEYS
        for end, value in (("", 2.0), ("_low", 1.5), ("_high", 2.5))
    }
    return {
        "method": method,
        "model": "flux-tiny",
        "preset": None,
        "ablation": None,
        "variant": None,
        "nfe": 13,
        "flops_ratio": 3.0,
        "psnr": 21.0,
        "images_per_second": 0.5,
        "peak_mb": 600.0,
        **values,
        **changes,
    }


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": list(rows),
        "machine": {"cores": 2, "processor": "a processor"},
        "size": [256, 256],
        "command": "fresco-trt bench",
        "commit": "abc",
        "scenes": 64,
        "model": "flux-tiny",
        "instrument": "model",
        "score": "share",
    }


ALL = document(
    row("plain", psnr=None),
    row("fresco", preset="fast"),
    row("fresco", preset="balanced"),
    row("fresco", preset="balanced", ablation="noise fresh", speedup=None),
)


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]
