"""A stored basis: it is read back as it was, and whatever is not one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fresco_trt.bundle.svd_basis import Basis, BasisRecord, check_basis, read_basis
from fresco_trt.errors import CalibrationError

HIDDEN, RANK = 12, 4

RECORD = BasisRecord(
    model="flux-tiny",
    weights_sha256="a" * 64,
    energy=0.85,
    prompts=3,
    prompts_sha256="b" * 64,
    seed=0,
    plan_sha256="c" * 64,
)


def basis(record: BasisRecord = RECORD) -> Basis:
    drawn = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(HIDDEN, RANK, generator=drawn))[0]
    values = torch.arange(HIDDEN, 0.0, -1.0)
    return Basis(directions=directions, values=values, record=record)


def test_a_basis_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "basis.safetensors"
    basis().store(path)
    found = read_basis(path)
    assert found.record == RECORD
    assert found.rank == RANK
    torch.testing.assert_close(found.directions, basis().directions, rtol=0, atol=0)
    torch.testing.assert_close(found.values, basis().values, rtol=0, atol=0)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_same_basis_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    basis().store(one)
    basis().store(two)
    assert one.read_bytes() == two.read_bytes()


def test_the_summary_says_what_each_direction_holds() -> None:
    summary = basis().to_json()
    powers = [value**2 for value in range(HIDDEN, 0, -1)]
    assert summary["rank"] == RANK
    assert summary["shares"] == pytest.approx([p / sum(powers) for p in powers[:RANK]])
    assert json.loads(json.dumps(summary))["weights_sha256"] == "a" * 64


@pytest.mark.parametrize(
    "change", [{"model": "flux"}, {"weights_sha256": "d" * 64}, {"hidden": HIDDEN + 1}]
)
def test_a_basis_of_something_else_is_refused(change: dict[str, object]) -> None:
    wanted = {"model": "flux-tiny", "weights_sha256": "a" * 64, "hidden": HIDDEN}
    check_basis(basis(), **wanted)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="calibrate --model"):
        check_basis(basis(), **(wanted | change))  # type: ignore[arg-type]


def stored(path: Path, header: object = None, **tensors: torch.Tensor) -> None:
    told = {"fresco-trt": json.dumps({"schema": 1, **asdict(RECORD)} if header is None else header)}
    parts = {"directions": basis().directions.contiguous(), "values": basis().values}
    save_file({**parts, **tensors}, path, told)


FIELDS = asdict(RECORD)

BROKEN: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "not safetensors": lambda path: path.write_bytes(b"hello"),
    "no header": lambda path: save_file({"directions": torch.eye(3)}, path),
    "another schema": lambda path: stored(path, {"schema": 2, **FIELDS}),
    "a missing field": lambda path: stored(path, {"schema": 1, "model": "flux-tiny"}),
    "a wrong type": lambda path: stored(path, {"schema": 1, **FIELDS, "seed": "0"}),
    "a list for a header": lambda path: stored(path, [1]),
    "not orthonormal": lambda path: stored(path, directions=torch.ones(HIDDEN, 2)),
    "not finite": lambda path: stored(path, directions=torch.full((HIDDEN, 2), torch.nan)),
    "another dtype": lambda path: stored(path, directions=torch.eye(HIDDEN, 2).half()),
    "another shape": lambda path: stored(path, values=torch.ones(3)),
    "no columns": lambda path: stored(path, directions=torch.ones(HIDDEN, 0)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_basis_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    BROKEN[name](path)
    with pytest.raises(CalibrationError, match=r"basis\.safetensors cannot be used"):
        read_basis(path)
