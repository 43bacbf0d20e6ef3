"""Where a model's diffusers pipeline folder is: at weights that were given, in the package, or on
the hub.

Under the families' components, which are read from it. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fresco_trt.errors import WeightsNotFound
from fresco_trt.models.weights import bundled_components, bundled_folder, components_folder

PASS_FOLDER = "pass --weights with the whole pipeline folder"


def find_pipeline(
    weights: str | None, model: str, parts: Sequence[str], repository: str | None
) -> Path:
    """The diffusers pipeline folder with the prompt encoders and decoder of `model`; it has all of
    `parts`, entries of such a folder.

    Looks at `weights` (a pipeline folder, or the transformer folder in one), then at what ships
    with the package, then at the model's `repository` on the hub; where a folder says that it
    shares another model's parts, at those. Raises WeightsNotFound, which lists the places looked
    at, and for a pipeline folder that lacks a part: another model's would not fit its transformer.
    """
    given = [] if weights in (None, "random") else around(Path(str(weights)).expanduser())
    looked = [components_folder(folder) for folder in (*given, bundled_folder(model))]
    for folder in looked:
        absent = [part for part in parts if not (folder / part).exists()]
        if not absent:
            return folder
        if "model_index.json" not in absent:
            raise WeightsNotFound(
                f"the pipeline folder {folder} lacks {', '.join(absent)}",
                expected=_whole(parts),
                fix="complete the folder, or pass --weights from one that is complete",
            )
    return _from_hub(model, parts, repository, looked)


def find_vae(weights: str | None, model: str) -> Path:
    """The pipeline folder whose `vae` is that of `model`: around `weights`, or the bundled one.

    Raises WeightsNotFound, which lists the places looked at. No substitute is taken for a path that
    was given, unless its folder says whose parts it shares, and nothing is fetched: what is
    measured of a VAE must be known to be that VAE's.
    """
    given = bundled_components(model) if weights is None else Path(weights).expanduser()
    # Around a path that is not there would be where the command was started.
    looked = around(given) if weights is not None and given.exists() else [given]
    looked = [components_folder(folder) for folder in looked]
    for folder in looked:
        if (folder / "vae" / "config.json").is_file():
            return folder
    raise WeightsNotFound(
        f"no VAE for {model} (looked at {', '.join(map(str, looked))})",
        expected="a diffusers pipeline folder with vae/config.json and its weights",
        fix=PASS_FOLDER,
    )


def around(weights: Path) -> list[Path]:
    """The folders that a path to weights may belong to: itself, and one or two levels up."""
    inside = weights.parent if weights.is_file() else weights
    return list(dict.fromkeys((weights, inside, inside.parent)))


def _from_hub(model: str, parts: Sequence[str], repository: str | None, looked: list[Path]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        if repository is None:
            raise FileNotFoundError("no repository is known")
        patterns = [pattern for part in parts for pattern in (part, f"{part}/*")]
        return Path(snapshot_download(repository, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:  # the hub client raises its own, its HTTP client's and OS errors
        hub = f"the hub ({repository})" if repository else "no hub repository is known"
        raise WeightsNotFound(
            f"no prompt encoders for {model} (looked at {', '.join(map(str, looked))}; {hub})",
            expected=_whole(parts),
            fix=PASS_FOLDER,
        ) from error


def _whole(parts: Sequence[str]) -> str:
    return "a diffusers pipeline folder with " + ", ".join(parts)
