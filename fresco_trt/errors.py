"""The error tree: everything a caller can be told, and the exit code each branch ends with.

Sits beside the whole data path: every module raises from here and nothing here imports anything
of the package. A message always says what was given, what was expected and what to do about it.
A public call refuses a wrong type as InvalidArgument, which is a ``TypeError`` and a ``ValueError``
as well, as diffusers and Python itself raise them. Misuse of
the parts below (a runner called outside its scope) is not in this tree; it stays ``TypeError``,
``ValueError`` or ``RuntimeError``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

LONGEST = 500
"""Characters of what was given that a message repeats."""

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def one_line(text: str) -> str:
    """A text without line breaks and terminal codes; ``?`` for what else cannot be printed, such as
    control characters, those that turn the order of letters, and halves of characters.
    """
    line = " ".join(_ESCAPE.sub("", text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


def either(names: Sequence[str]) -> str:
    """What may be given, in words: ``one``, ``one or other``, ``one, other or third``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


class FrescoError(Exception):
    """Root of everything the package raises on purpose.

    ``given`` is what was found, ``expected`` what would have been accepted, ``fix`` the next
    action. ``exit_code`` is what the command line exits with: 2 for a wrong request, 1 for a
    failure while carrying out a correct one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, given: str, *, expected: str, fix: str) -> None:
        super().__init__(given)
        self.given = given
        self.expected = expected
        self.fix = fix
        self.context: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``<context: >given; expected <expected>. Fix: <fix>``, contexts outermost first.

        One printable line, whatever of a bundle, a path or a library it repeats.
        """
        where = "".join(f"{_bounded(part)}: " for part in self.context)
        given = _bounded(self.given)
        return one_line(f"{where}{given}; expected {self.expected}. Fix: {self.fix}")

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling across processes: keyword-only arguments defeat the default."""
        arguments = (type(self), self.given, self.expected, self.fix)
        return _rebuild, arguments, {"context": self.context}


def _rebuild(kind: type[FrescoError], given: str, expected: str, fix: str) -> FrescoError:
    return kind(given, expected=expected, fix=fix)


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Prepend ``where`` to any :class:`FrescoError` that passes through; others pass untouched."""
    try:
        yield
    except FrescoError as error:
        error.context = (where, *error.context)
        raise


# --- a request that cannot be planned -------------------------------------------------------


class PlanError(FrescoError):
    """A plan was asked for that cannot exist."""

    exit_code: ClassVar[int] = 2


class UnknownModel(PlanError):
    """The model name is in no table."""


class UnknownPreset(PlanError):
    """The model has no preset of that name."""


class UnknownBackend(PlanError):
    """No engine library is registered under that name."""


class UnsupportedSize(PlanError):
    """The picture size does not fit the model's grids or its limits."""


class UnsupportedStages(PlanError):
    """The number of stages has no schedule for this model."""


class IncompatibleOptions(PlanError):
    """Two options that are each fine contradict one another."""


class InvalidArgument(PlanError, TypeError, ValueError):
    """An argument of a public call is of another type, or one that the call never takes."""


class PromptTooLong(PlanError):
    """A prompt has more tokens of its own than a stage of the plan takes."""


class PictureInvalid(PlanError):
    """A source picture cannot be read, or is too large to be."""


class InvalidPlan(PlanError):
    """A plan, or its stored form, breaks an invariant."""


# --- ahead of time: export, calibrate, quantize, build --------------------------------------


class LowerError(FrescoError):
    """Lowering a plan to engines failed."""


class WeightsNotFound(LowerError):
    """No model weights at any of the places looked at."""

    exit_code: ClassVar[int] = 2


class UnsupportedWeights(LowerError):
    """Weights are there in a form that is not read: packed, pickled, not finite, or of names and
    shapes that their model has not.
    """

    exit_code: ClassVar[int] = 2


class ExportError(LowerError):
    """A stage graph could not be exported."""


class UnsupportedGraph(LowerError):
    """A captured graph does what no engine can do in its place."""


class BuildError(LowerError):
    """An engine library refused or failed to build a graph."""


class BackendUnavailable(LowerError):
    """The engine library or the device it needs is not on this machine."""

    exit_code: ClassVar[int] = 2


class UnsupportedPrecision(LowerError):
    """The engine library cannot run this model in that precision here."""

    exit_code: ClassVar[int] = 2


class OutputNotWritable(LowerError):
    """The output path cannot be created or written."""

    exit_code: ClassVar[int] = 2


class DiskFull(LowerError):
    """The disk filled up, or would, while writing."""


class CalibrationError(LowerError):
    """Calibration data is missing, belongs to something else or is unusable."""

    exit_code: ClassVar[int] = 2


class QualityTooLow(LowerError):
    """A quantised build draws other pictures than the same plan unquantised."""


# --- the bundle on disk ---------------------------------------------------------------------


class BundleError(FrescoError):
    """A bundle cannot be opened as it stands."""

    exit_code: ClassVar[int] = 2


class BundleNotFound(BundleError):
    """No bundle at that path."""


class ManifestInvalid(BundleError):
    """The manifest does not follow its schema."""


class SchemaTooNew(BundleError):
    """The manifest was written by a newer version."""


class FileMissing(BundleError):
    """A file that the manifest lists is not there."""


class FileUnexpected(BundleError):
    """A file is there that the manifest does not list."""


class PathEscape(BundleError):
    """A listed path leaves the bundle folder or goes through a link."""


class DigestMismatch(BundleError):
    """A file's bytes are not those that were recorded."""


class ContentInvalid(BundleError):
    """A file of a bundle is the recorded one, and holds what no build of its model writes."""


class BundleChanged(BundleError):
    """A bundle was replaced, or written to, while it was being opened or loaded."""


class EnvironmentMismatch(BundleError):
    """The engines were built for another library version or device."""


class NativeCodeNotTrusted(BundleError):
    """The engines are native code that nobody has vouched for."""


class BundleNotSigned(BundleError):
    """The manifest has no signature, or none of the key that was given."""


class KeyNotUsable(BundleError):
    """A key file cannot be read, or not used to sign or to verify."""


# --- request time ---------------------------------------------------------------------------


class RunError(FrescoError):
    """Running the engines failed."""


class SignatureMismatch(RunError):
    """The named tensors do not match the engine's signature."""


class EngineFailed(RunError):
    """The engine library reported a failure while running."""


class NonFiniteValues(RunError):
    """An engine, an encoder or a decoder gave what is infinite or no number."""


class ComponentFailed(RunError):
    """A tokenizer, a prompt encoder or a decoder failed while running."""


class OutOfDeviceMemory(RunError):
    """The device has too little memory for this bundle."""


class Cancelled(RunError):
    """The caller cancelled a request before its picture was there."""


class VerificationFailed(RunError):
    """An engine and the eager reference disagree beyond the tolerance."""


# --- profiling ------------------------------------------------------------------------------


class ProfileError(FrescoError):
    """A profile could not be taken, or not be read."""


class ProfilerUnavailable(ProfileError):
    """A profiler, or what it needs of this machine, is not here."""

    exit_code: ClassVar[int] = 2


class ExportInvalid(ProfileError):
    """A file is no export of Nsight Systems that can be read."""

    exit_code: ClassVar[int] = 2


# --- tuning ---------------------------------------------------------------------------------


class TuneError(FrescoError):
    """A plan could not be tuned."""


class ScorerFailed(TuneError):
    """The user's scorer raised, or gave what is no number."""


class TargetNotReached(TuneError):
    """No candidate is as fast, or as close, as was asked; the best there is was written."""


# --- showing what there is --------------------------------------------------------------------


class ReportError(FrescoError):
    """A page cannot be made of the files that were given."""

    exit_code: ClassVar[int] = 2
