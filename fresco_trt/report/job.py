"""One report: from what was asked for to the page on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.signature import check_signature
from fresco_trt.bundle.trust import NO_TRUST, Trust
from fresco_trt.errors import IncompatibleOptions, OutputNotWritable
from fresco_trt.files.atomic_file import check_writable, replacing
from fresco_trt.models.registry import model_facts
from fresco_trt.report.bench import bench_content, read_bench
from fresco_trt.report.bundle import calibration_content, engines_content, plan_content
from fresco_trt.report.page import Section, page
from fresco_trt.report.pictures import (
    Picture,
    check_count,
    drawn_pictures,
    given_pictures,
    strip,
)
from fresco_trt.report.profile import profile_content, read_profile

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle
    from fresco_trt.pipelines.image import FrescoPipeline

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRequest:
    """What a page is made of.

    The bundle at ``engines``; a result of the bench, and a profile; pictures that are given, and
    those that the engines draw of ``prompts`` with one ``seed`` (None: 0). ``trust`` is what is
    vouched for where engines are loaded, which only drawing does; its key is checked in any case.

    Raises IncompatibleOptions for a seed or trust that nothing would read, ReportError for too many
    pictures, OutputNotWritable for another name than one ending in .html.
    """

    engines: Path
    out: Path
    bench: Path | None = None
    profile: Path | None = None
    pictures: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()
    seed: int | None = None
    trust: Trust = NO_TRUST

    def __post_init__(self) -> None:
        unread = [("--seed", self.seed is not None), ("--trust", self.trust.native_code)]
        for option, given in unread:
            if given and not self.prompts:
                raise IncompatibleOptions(
                    f"{option} without --prompt",
                    expected="it for pictures that are drawn",
                    fix=f"pass --prompt too, or leave {option} out",
                )
        check_count(len(self.prompts), "--prompt")
        if self.out.suffix.lower() != ".html":
            raise OutputNotWritable(
                f"--out {self.out}",
                expected="a file name ending in .html",
                fix="pass --out report.html",
            )


def make_report(request: ReportRequest, progress: Progress) -> dict[str, Any]:
    """Write the page; where it is and what is on it.

    Raises a BundleError leaf, UnknownModel, ReportError, what drawing raises, OutputNotWritable or
    DiskFull; whatever it raises, ``request.out`` is as it was.
    """
    check_writable(request.out)
    bundle = _opened(request)
    sections = list(_sections(request, bundle, progress))
    manifest, plan = bundle.manifest, bundle.plan
    size = "x".join(map(str, plan.size))
    lead = f"{size}, {len(plan.stages)} stages, {manifest.precision}, {manifest.backend.name}"
    title = f"{manifest.model.name}: {bundle.folder.name}"
    document = page(title, lead, sections, f"Made by fresco-trt {__version__}.").encode()
    with replacing(request.out) as partial:
        partial.write_bytes(document)
    return {
        "report": str(request.out),
        "bytes": len(document),
        "manifest": manifest.digest,
        "sections": [each.name for each in sections],
    }


def _opened(request: ReportRequest) -> Bundle:
    if request.prompts:
        from fresco_trt.pipelines.loading import opened

        return opened(request.engines, request.trust)
    bundle = open_bundle(request.engines)
    if request.trust.verify_key is not None:
        check_signature(bundle, request.trust.verify_key)
    return bundle


def _sections(request: ReportRequest, bundle: Bundle, progress: Progress) -> Iterator[Section]:
    """What is read from files comes before anything is drawn, which may take long."""
    model = model_facts(bundle.manifest.model.name)
    bench = None if request.bench is None else read_bench(request.bench, bundle.plan)
    profile = None if request.profile is None else read_profile(request.profile, bundle.plan)
    pictures = given_pictures(request.pictures) + _drawn(request, bundle, progress)
    yield Section(name="plan", title="Plan", content=plan_content(bundle, model))
    if pictures:
        yield Section(name="pictures", title="Pictures", content=strip(pictures))
    if bench is not None:
        content = bench_content(bench, bundle.plan)
        yield Section(name="bench", title="Quality over speed", content=content)
    if profile is not None:
        content = profile_content(profile)
        yield Section(name="profile", title="Where the time goes", content=content)
    signed = request.trust.verify_key is not None
    yield Section(name="engines", title="Engines", content=engines_content(bundle, signed))
    content = calibration_content(bundle, model)
    yield Section(name="calibration", title="Calibration and cache", content=content)


def _drawn(request: ReportRequest, bundle: Bundle, progress: Progress) -> list[Picture]:
    if not request.prompts:
        return []
    from fresco_trt.pipelines.image import FrescoPipeline

    with FrescoPipeline.over(bundle, request.trust) as pipe:
        return list(_told(pipe, request, progress))


def _told(pipe: FrescoPipeline, request: ReportRequest, progress: Progress) -> Iterator[Picture]:
    for done, prompt in enumerate(request.prompts):
        progress("drawing", done / len(request.prompts))
        yield from drawn_pictures(pipe, [prompt], request.seed or 0)
