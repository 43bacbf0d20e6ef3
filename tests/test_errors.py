"""Laws of the error tree: who exits with what, and what every message says."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from fresco_trt import errors
from fresco_trt.errors import FrescoError, PlanError, UnknownModel, error_context

TREE = {
    "FrescoError": (Exception, 1),
    "PlanError": (errors.FrescoError, 2),
    "UnknownModel": (errors.PlanError, 2),
    "UnknownPreset": (errors.PlanError, 2),
    "UnknownBackend": (errors.PlanError, 2),
    "UnsupportedSize": (errors.PlanError, 2),
    "UnsupportedStages": (errors.PlanError, 2),
    "IncompatibleOptions": (errors.PlanError, 2),
    "InvalidArgument": (errors.PlanError, 2),
    "PromptTooLong": (errors.PlanError, 2),
    "PictureInvalid": (errors.PlanError, 2),
    "InvalidPlan": (errors.PlanError, 2),
    "LowerError": (errors.FrescoError, 1),
    "WeightsNotFound": (errors.LowerError, 2),
    "UnsupportedWeights": (errors.LowerError, 2),
    "ExportError": (errors.LowerError, 1),
    "UnsupportedGraph": (errors.LowerError, 1),
    "BuildError": (errors.LowerError, 1),
    "BackendUnavailable": (errors.LowerError, 2),
    "UnsupportedPrecision": (errors.LowerError, 2),
    "OutputNotWritable": (errors.LowerError, 2),
    "DiskFull": (errors.LowerError, 1),
    "CalibrationError": (errors.LowerError, 2),
    "QualityTooLow": (errors.LowerError, 1),
    "BundleError": (errors.FrescoError, 2),
    "BundleNotFound": (errors.BundleError, 2),
    "ManifestInvalid": (errors.BundleError, 2),
    "SchemaTooNew": (errors.BundleError, 2),
    "FileMissing": (errors.BundleError, 2),
    "FileUnexpected": (errors.BundleError, 2),
    "PathEscape": (errors.BundleError, 2),
    "DigestMismatch": (errors.BundleError, 2),
    "ContentInvalid": (errors.BundleError, 2),
    "BundleChanged": (errors.BundleError, 2),
    "EnvironmentMismatch": (errors.BundleError, 2),
    "NativeCodeNotTrusted": (errors.BundleError, 2),
    "BundleNotSigned": (errors.BundleError, 2),
    "KeyNotUsable": (errors.BundleError, 2),
    "RunError": (errors.FrescoError, 1),
    "SignatureMismatch": (errors.RunError, 1),
    "EngineFailed": (errors.RunError, 1),
    "NonFiniteValues": (errors.RunError, 1),
    "ComponentFailed": (errors.RunError, 1),
    "OutOfDeviceMemory": (errors.RunError, 1),
    "Cancelled": (errors.RunError, 1),
    "VerificationFailed": (errors.RunError, 1),
    "ProfileError": (errors.FrescoError, 1),
    "ProfilerUnavailable": (errors.ProfileError, 2),
    "ExportInvalid": (errors.ProfileError, 2),
    "TuneError": (errors.FrescoError, 1),
    "ScorerFailed": (errors.TuneError, 1),
    "TargetNotReached": (errors.TuneError, 1),
    "ReportError": (errors.FrescoError, 2),
}


def in_the_package(kind: type[FrescoError]) -> Iterator[type[FrescoError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from in_the_package(child)


def an_error() -> UnknownModel:
    return UnknownModel("model 'x'", expected="a or b", fix="pass --model a")


def test_the_tree_is_the_drawn_one() -> None:
    found = {
        kind.__name__: (kind.__bases__[0], kind.exit_code)
        for kind in in_the_package(FrescoError)
        if kind.__module__ == errors.__name__
    }
    assert found == TREE


@pytest.mark.parametrize("name", TREE)
def test_a_message_says_given_expected_and_fix(name: str) -> None:
    error = getattr(errors, name)("3 wheels", expected="4", fix="add a wheel")
    assert (error.given, error.expected, error.fix) == ("3 wheels", "4", "add a wheel")
    assert str(error) == "3 wheels; expected 4. Fix: add a wheel"


@pytest.mark.parametrize("missing", ["expected", "fix"])
def test_expected_and_fix_cannot_be_left_out(missing: str) -> None:
    said = {"expected": "4", "fix": "add a wheel"}
    del said[missing]
    with pytest.raises(TypeError):
        FrescoError("3 wheels", **said)


def test_contexts_join_outermost_first() -> None:
    outer, middle, inner = map(error_context, ("bundle apple", "stage 2 of 3", "step 4"))
    with pytest.raises(UnknownModel) as raised, outer, middle, inner:
        raise an_error()
    assert str(raised.value) == f"bundle apple: stage 2 of 3: step 4: {an_error()}"


def test_a_context_keeps_the_error_itself() -> None:
    error = an_error()
    with pytest.raises(PlanError) as raised, error_context("stage 1"):
        raise error
    assert raised.value is error
    assert error.given == an_error().given


def test_a_context_leaves_other_errors_and_no_error_alone() -> None:
    with pytest.raises(ValueError, match=r"^misuse$"), error_context("stage 1"):
        raise ValueError("misuse")
    with error_context("stage 1"):
        pass


@pytest.mark.parametrize("name", TREE)
def test_an_error_survives_the_way_between_processes(name: str) -> None:
    error = getattr(errors, name)("3 wheels", expected="4", fix="add a wheel")
    with pytest.raises(FrescoError), error_context("worker 1"):
        raise error
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
