"""What the commands show of their results, for people: a table and a few sentences each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.cli.display import say, table
from fresco_trt.plan.caching import spelling_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def plan_table(summary: Mapping[str, Any]) -> None:
    """A plan's stages, what is refined between them, and the cost beside the baseline."""
    rows = [
        (
            number,
            _latent(stage["grid"]),
            stage["tokens"],
            stage["steps"],
            f"{stage['sigma_start']:.3f} to {stage['sigma_end']:.3f}",
            f"{tflops:.3g}" if tflops < 1000 else f"{tflops:,.0f}",
        )
        for number, (stage, tflops) in enumerate(
            zip(summary["stages"], summary["stage_tflops"], strict=True), start=1
        )
    ]
    title = f"{summary['model']} {'x'.join(map(str, summary['size']))}, {len(rows)} stages"
    table(title, ("stage", "latent", "tokens", "steps", "sigma", "TFLOP"), rows)
    for line in (*_mixed_lines(summary), *_edit_lines(summary), *_text_lines(summary)):
        say(line)
    for line in (*_sparse_lines(summary), *_cached_lines(summary)):
        say(line)
    baseline = summary["baseline"]
    solver = "" if summary["solver"] == "euler" else f"{summary['solver']} "
    say(
        f"{summary['nfe']} {solver}steps, {_tflops(summary['tflops'])}; plain {baseline['steps']} "
        f"steps {_tflops(baseline['tflops'])}: {summary['flops_ratio']:.2f}x fewer"
    )
    for line in (*_preset_lines(summary), *_memory_lines(summary)):
        say(line)
    for line in _tuned_lines(summary):
        say(line)


def _tuned_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Whether the preset was chosen on the model's weights, and what does that where it was not."""
    if summary["presets_of"] is not None:
        yield f"generic presets, those of {summary['presets_of']}"
    if summary["preset_tuned"] is False:
        command = summary["tune_command"]
        better = f": {command} finds the best plan for yours" if command else ""
        yield f"the preset {summary['preset']} is not tuned on weights{better}"


def _tflops(number: float) -> str:
    return f"{number:.4g} TFLOP" if number < 10_000 else f"{number:,.0f} TFLOP"


def _latent(grid: Mapping[str, Any]) -> str:
    """Latent pixels of a stage, width first, and the latent frames of a clip."""
    frames = f"x{grid['frames']}" if "frames" in grid else ""
    return f"{grid['width']}x{grid['height']}{frames}"


def _preset_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What each preset of as many stages would save."""
    ratios = summary["preset_flops_ratios"]
    if ratios:
        named = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
        yield f"predicted of the presets at this size: {named} fewer TFLOP"


def _memory_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What the transformer takes, and what the largest stage does beside it."""
    weights, live = (summary[key]["bf16"] for key in ("weight_bytes", "activation_bytes"))
    yield (
        f"memory in bf16: weights {_size(weights)}, live tensors about {_size(live)} with fused "
        f"attention; without, {_size(summary['score_bytes'])} more for each matrix of scores"
    )


def _sparse_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """How much of a clip attention sees, where that is not all of it."""
    share = summary.get("sparse_attention")
    if share is not None:
        yield f"attention sees {100 * share:.3g}% of a clip's blocks of keys, and all of the text"


def _cached_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Which steps are skipped, what predicts them, and what that keeps in memory."""
    cache = summary["cache"]
    if cache is None:
        return
    actions = "+".join(spelling_of(stage["actions"]) for stage in summary["stages"])
    yield (
        f"{summary['full_steps']} of {summary['nfe']} steps in full ({actions}), the others "
        f"predicted by {cache['name']} of order {cache['max_order']}; its state takes at most "
        f"{summary['cache_bytes'] / 1e6:.3g} MB"
    )


def _mixed_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """For each mixed stage its tokens of either size, and the rules that chose the fine ones."""
    pairs = zip(summary["stages"][1:], summary["transitions"], strict=True)
    for number, (stage, transition) in enumerate(pairs, start=2):
        rules = [
            f"{each['count']} by {each['rule']}{' in tubes' if each.get('tube') else ''}"
            for each in transition["refinements"]
        ]
        if rules:
            fine = 4 * stage["refined"]
            found = (
                f"for edits of at most {stage['refined']} coarse tokens"
                if "edit" in summary
                else f"refined {', then '.join(rules)} over {transition['window']} steps"
            )
            yield (
                f"stage {number} is mixed: {stage['tokens'] - fine} coarse + {fine} fine tokens, "
                f"positions {_numbered(summary['positions'])}; {found}"
            )


def _edit_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Which stages are alternatives, what decides between them, and what each would save."""
    edit = summary.get("edit")
    if edit is None:
        return
    ratios = ", ".join(f"{ratio:.2f}x" for ratio in summary["path_flops_ratios"])
    yield (
        f"stage 1 is a draft, and one of stages 2 to {len(summary['stages'])} follows: the first "
        f"with room for what differs from the source by {edit['threshold']:g} or more "
        f"({edit['discrepancy']}); {ratios} fewer TFLOP in turn"
    )


def _text_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """How much of the text each stage takes and sees, where that is not all of it, as it is."""
    texts = [stage.get("text_tokens") for stage in summary["stages"]]
    if any(texts):
        yield (
            f"text tokens {'+'.join('all' if each is None else str(each) for each in texts)}: "
            "what is cut is padding, which the model was trained to see, so that pictures change"
        )
    amplifier = summary.get("text_amplifier", 0.0)
    if amplifier:
        last, counts = summary["stages"][-1]["tokens"], [e["tokens"] for e in summary["stages"]]
        weights = ", ".join(f"{(last / count) ** (amplifier / 2):.2f}x" for count in counts)
        yield f"text amplifier {amplifier:g}: in attention a prompt's tokens weigh {weights}"


def _numbered(positions: str) -> str:
    return "on each query's own grid" if positions == "aligned" else f"in {positions} units"


def dry_run_table(summary: Mapping[str, Any]) -> None:
    """What a build would do, engine by engine, and what they take in each layout there is."""
    for draft in summary["builds"]:
        several = "" if draft["batch"] == 1 else f", {draft['batch']} pictures at once"
        title = f"{draft['out']} ({draft['backend']}, {draft['precision']}{several})"
        counts = ("engine", "tokens", "text", "latents", "built before")
        table(title, counts, map(_shapes, draft["engines"]))
        for bundle, seconds in _before(draft["engines"]).items():
            say(f"built before: {bundle}, {seconds:.1f} s in all")
        for layout in draft["layouts"]:
            sizes = ("engine", "host memory to build", "disk", "resident")
            table(f"estimates, layout {layout['name']}", sizes, _memory(layout))
        if draft["estimates"]:
            say(draft["estimates"])
        for line in _depth_lines(draft["blocks"], draft["plan"]["model"]):
            say(line)
        say(f"{draft['state']}\nreuse: {draft['reuse']}")


def _shapes(engine: Mapping[str, Any]) -> tuple[object, ...]:
    """An engine's name and counts, and the seconds of an earlier build."""
    earlier = engine["earlier"]
    seconds = "no earlier build" if earlier is None else f"{earlier['seconds']:.1f} s"
    return (engine["name"], engine["tokens"], engine["text_tokens"], engine["latents"], seconds)


def _before(engines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The bundles that equal engines were built in, and the seconds of the whole build."""
    found = [each["earlier"] for each in engines if each["earlier"] is not None]
    return {each["bundle"]: each["bundle_seconds"] for each in found}


def _memory(layout: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each engine, one for weights that they share, one for all together."""
    for engine in layout["engines"]:
        yield (engine["name"], *_sizes(engine))
    if layout["shared_bytes"]:
        shared = _size(layout["shared_bytes"])
        yield ("shared weights", "", shared, shared)
    yield ("all", *_sizes(layout))


def _sizes(memory: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(_size(memory[key]) for key in ("build_bytes", "disk_bytes", "resident_bytes"))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _depth_lines(blocks: str | None, model: str) -> Iterator[str]:
    """That engines of fewer blocks are not the model, wherever they are shown."""
    if blocks is not None:
        double, _, single = str(blocks).partition(",")
        kinds = f"{double} double-stream and {single} single-stream" if single else double
        yield (
            f"depth-reduced: {kinds} blocks as wide as those of {model}; for latency and memory "
            "only, its pictures are noise"
        )


def built_table(summary: Mapping[str, Any]) -> None:
    """The bundles that a build left, and what it took of the machine's memory."""
    for bundle in summary["bundles"]:
        say(
            f"{bundle['folder']}: {bundle['state']}, {len(bundle['engines'])} engines, "
            f"{bundle['bytes'] / 1e6:.1f} MB ({bundle['backend']}), {bundle['seconds']:.1f} s"
        )
        for line in _depth_lines(bundle["blocks"], bundle["model"]):
            say(line)
    peak = summary["peak"]
    if peak is not None:
        children = peak["children_bytes"]
        largest = f"; largest program it started {_size(children)}" if children else ""
        say(f"peak host memory {_size(peak['own_bytes'])}{largest}")


def generated_table(summary: Mapping[str, Any]) -> None:
    """Where a picture or a clip is, and where its time went."""
    seconds = summary["seconds"]
    stages: dict[int, list[float]] = {}
    for step in summary["steps"]:
        stages.setdefault(step["stage"], []).append(step["seconds"])
    rows = [("text", "", f"{seconds['text']:.3f}")]
    rows += [(f"stage {k}", str(len(v)), f"{sum(v):.3f}") for k, v in stages.items()]
    rows += [("decode", "", f"{seconds['decode']:.3f}"), ("total", "", f"{seconds['total']:.3f}")]
    table(f"{summary['model']} on {summary['backend']}", ("part", "steps", "seconds"), rows)
    host = seconds["denoise"] - seconds["engines"]
    share = 100 * host / seconds["denoise"]
    say(f"denoise {seconds['denoise']:.3f} s, {share:.2f}% outside engines")
    for line in _depth_lines(summary["blocks"], summary["model"]):
        say(line)
    for path in _written(summary):
        say(path)


def _written(summary: Mapping[str, Any]) -> Iterator[str]:
    """The files that a command which draws has left."""
    yield from summary.get("previews", ())
    for name in ("image", "strip", "video"):
        if summary.get(name) is not None:
            yield summary[name]


def verify_table(summary: Mapping[str, Any]) -> None:
    """Error of every engine output, then of the picture."""
    measures = ("max", "relative", "cosine")
    rows = [
        (e["engine"], e["output"], *("inf" if e[m] is None else f"{e[m]:.1e}" for m in measures))
        for e in summary["engines"]
    ]
    table("engine against eager", ("engine", "output", "max", "relative", "1 - cosine"), rows)
    verdict = "passed" if summary["passed"] else "FAILED"
    say(f"picture: largest pixel difference {summary['pixels']} of 255; {verdict}")


def manifest_table(summary: Mapping[str, Any]) -> None:
    """A bundle's manifest for people."""
    sizes = {file["path"]: file["bytes"] for file in summary["files"]}
    rows = [
        (engine["name"], path, f"{sizes[path] / 1e6:.2f} MB")
        for engine in summary["engines"]
        for path in engine["files"]
    ]
    backend, plan = summary["backend"], summary["plan"]
    table(f"{summary['model']['name']} bundle", ("engine", "file", "size"), rows)
    say(
        f"{plan['size'][0]}x{plan['size'][1]}, {plan['nfe']} steps, {summary['precision']}, "
        f"{backend['name']} ({backend['library']} {backend['library_version']}) "
        f"{backend['target']}\n"
        f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, all digests right\n"
        f"weights {summary['model']['weights_sha256'][:16]}, key {summary['key'][:16]}"
    )
    for line in _native_lines(summary):
        say(line)
    for line in _depth_lines(summary["built"]["options"].get("blocks"), summary["model"]["name"]):
        say(line)
    for name, counts in summary["networks"].items():
        whole = sum(counts.values())
        shares = (f"{count} of {whole} in {kind}" for kind, count in counts.items())
        say(f"network of {name}: matrix products {', '.join(shares)}")
    attention_lines(summary["attention"])
    if summary["quantized"] is not None:
        _quantised_table(summary["quantized"])


def attention_lines(choices: Mapping[str, Any]) -> None:
    """The attention of each compiled piece, and the times that it was chosen by."""
    for name, choice in choices.items():
        times = ", ".join(f"{kind} {time:g} ms" for kind, time in choice["milliseconds"].items())
        say(f"attention of {name}: {choice['attention']} ({times})")


def _native_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Whether the engines are native code, and who vouches for it."""
    native = summary["native_code"]
    if native is None:
        yield "no native code"
    else:
        kinds = ", ".join(native["kinds"])
        yield f"native code: {kinds}, {len(native['files'])} files; {_TRUST[native['trusted_by']]}"
    if summary["signature"] is not None:
        yield f"signature: {_SIGNATURES[summary['signature']]}"


_TRUST = {
    None: "this user did not build it, so that loading it takes --trust or --verify-key",
    "build": "built by this user, so that it is loaded",
    "signature": "signed by the given key",
}
_SIGNATURES = {"unchecked": "there, not checked without --verify-key", "valid": "of the given key"}


def signed_table(summary: Mapping[str, Any]) -> None:
    """Where a signature is, and what others check it with."""
    say(
        f"{summary['signature']}\nmanifest {summary['manifest'][:16]}, signed; whoever has this key"
        f" in a file loads the bundle with --verify-key FILE:\n{summary['public_key'].strip()}"
    )


def _quantised_table(record: Mapping[str, Any]) -> None:
    """Which products run on codes, what the codes take, and how the bundle was judged."""
    kinds = sorted({kind for counts in record["products"].values() for kind in counts})
    table(
        f"matrix products, recipe {record['recipe']}",
        ("engine", *kinds, "velocity error"),
        [
            (name, *(counts.get(kind, 0) for kind in kinds), f"{record['errors'][name]:.2%}")
            for name, counts in record["products"].items()
        ],
    )
    ratio = record["bytes"] / record["float32_bytes"]
    forced = "; published by force" if record["forced"] else ""
    say(
        f"codes and scales {record['bytes'] / 1e6:.2f} MB, {ratio:.3f}x of the same weights in "
        f"float32; kept as they are: {', '.join(record['kept'])}\n"
        f"SSIM {record['ssim']:.3f} to the same plan unquantised (lowest {record['lowest']:.3f}, "
        f"gate {record['threshold']:g}), {record['prompts']} prompts, by the "
        f"{record['judged_by']}{forced}"
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
    table(title, ("backend", "builds", "runs", "version", "missing here, and what adds it"), rows)
    bundled = [model["name"] for model in summary["models"] if model["bundled_weights"]]
    say(f"models with bundled weights: {', '.join(bundled) or 'none'}")
