"""What answers Triton's requests: the class behind the ``model.py`` of an exported repository.

Runs within Triton's Python backend, whose module ``triton_python_backend_utils`` exists there only
and is handed in. Bundles lie beside ``model.py``, and are those that were exported, byte for byte:
the configuration has the digests of their manifests.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fresco_trt.bundle.trust import Trust
from fresco_trt.errors import Cancelled, DigestMismatch, FrescoError, PlanError
from fresco_trt.serve.limits import LONGEST_PROMPT

if TYPE_CHECKING:
    from fresco_trt.pipelines.several import FrescoPipelines

_LOG = logging.getLogger(__name__)

KEY = "FRESCO_TRT_VERIFY_KEY"
"""Environment variable of the server: the PEM file of the key that must have signed the bundles."""

BUNDLES = "bundles"
MANIFEST = "manifest:"
"""Before a bundle's folder, the parameter that has its manifest's digest."""

_LONGEST = {"prompt": 4 * LONGEST_PROMPT, "size": 32, "preset": 256}
"""Bytes of a text input at most."""


class TritonModel:
    """A model of Triton's Python backend over the bundles of its version's folder.

    Native code in a bundle is loaded if its manifest has the digest that was exported: who exported
    it vouched for it, and whoever changes the digest could change ``model.py`` as well. Where the
    server's environment names a key in :data:`KEY`, every bundle must be signed by that instead.
    """

    utils: ClassVar[Any]
    """Triton's module, set by ``model.py``."""

    _pipelines: FrescoPipelines | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open and load every bundle. Raises a BundleError leaf, and what loading raises; Triton
        then says that the model is not ready, and why.
        """
        if args["model_instance_kind"] == "GPU":
            see_only(args["model_instance_device_id"], os.environ)
        from fresco_trt.pipelines.loading import opened
        from fresco_trt.pipelines.several import FrescoPipelines

        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLES
        parameters = json.loads(args["model_config"])["parameters"]
        exported = {
            name.removeprefix(MANIFEST): value["string_value"]
            for name, value in parameters.items()
            if name.startswith(MANIFEST)
        }
        key = os.environ.get(KEY)
        trust = Trust(native_code=key is None, verify_key=None if key is None else Path(key))
        bundles = []
        for name, digest in sorted(exported.items()):
            bundle = opened(folder / name, trust)
            if bundle.manifest.digest != digest:
                raise DigestMismatch(
                    f"the bundle {name} with the manifest {bundle.manifest.digest[:12]}...",
                    expected=f"{digest[:12]}..., which was exported",
                    fix="export it again with 'fresco-trt export-triton'",
                )
            bundles.append(bundle)
        self._pipelines = FrescoPipelines(bundles, trust)
        for bucket in self._pipelines.buckets:
            self._pipelines[bucket]  # loads it; Triton's own warm-up draws with it

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request: a picture, or an error that says what was wrong."""
        return [self._answered(request) for request in requests]

    def finalize(self) -> None:
        """Free the engines."""
        if self._pipelines is not None:
            self._pipelines.close()
            self._pipelines = None

    # --- a request ----------------------------------------------------------------------------

    def _answered(self, request: Any) -> Any:
        try:
            image = self._drawn(request)
        except Exception as error:
            return self.utils.InferenceResponse(output_tensors=[], error=self._error(error))
        return self.utils.InferenceResponse(output_tensors=[self.utils.Tensor("image", image)])

    def _drawn(self, request: Any) -> Any:
        """Pixels [height, width, 3], uint8. Raises FrescoError leaves."""
        import numpy as np

        if self._pipelines is None:
            raise RuntimeError("a request before initialize, or after finalize")
        words = {name: self._text(request, name) for name in _LONGEST}
        bucket = self._pipelines.find(size=words["size"], preset=words["preset"])
        result = self._pipelines[bucket](
            _required(words["prompt"]),
            seed=int(self._value(request, "seed", 0)),
            guidance=self._value(request, "guidance", None),
            cancel=_asked(request),
        )
        return np.asarray(result.images[0])

    def _value(self, request: Any, name: str, default: Any) -> Any:
        """The one element of an input, as Python has it; ``default`` where it was not sent."""
        tensor = self.utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return default
        values = tensor.as_numpy().reshape(-1)
        if len(values) != 1:
            raise PlanError(
                f"the input {name} with {len(values)} elements",
                expected="one",
                fix="send each picture as a request of its own",
            )
        return values[0] if isinstance(values[0], bytes) else values[0].item()

    def _text(self, request: Any, name: str) -> str | None:
        """An input as text; None where it was not sent, or is empty but for a prompt's."""
        given = self._value(request, name, None)
        if given is None or (not given and name != "prompt"):
            return None
        if not isinstance(given, bytes) or len(given) > _LONGEST[name]:
            raise PlanError(
                f"the input {name} with {len(given)} bytes",
                expected=f"at most {_LONGEST[name]}",
                fix="send a shorter one",
            )
        try:
            return given.decode("utf-8")
        except UnicodeDecodeError:
            raise PlanError(
                f"the input {name} with bytes that are no UTF-8",
                expected="UTF-8 text",
                fix="encode it so",
            ) from None

    def _error(self, error: Exception) -> Any:
        """As the client is told; of what nobody foresaw, only that it is in the log."""
        kind = self.utils.TritonError
        if isinstance(error, Cancelled):
            return kind("the request was cancelled", kind.CANCELLED)
        if isinstance(error, PlanError):
            return kind(str(error), kind.INVALID_ARG)
        if isinstance(error, FrescoError):
            return kind(str(error), kind.INTERNAL)
        _LOG.error("a request failed", exc_info=error)
        return kind(f"the server failed; its log says why ({type(error).__name__})", kind.INTERNAL)


def see_only(device: str, environment: MutableMapping[str, str]) -> None:
    """Let this process see the one GPU that Triton gave it, which it counts among those that the
    server sees. Before any library looks for GPUs.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    seen = [each.strip() for each in visible if each.strip()]
    number = int(device)
    environment["CUDA_VISIBLE_DEVICES"] = seen[number] if number < len(seen) else str(number)


def _required(prompt: str | None) -> str:
    if prompt is None:
        raise PlanError("no input prompt", expected="what to draw", fix="send a prompt")
    return prompt


def _asked(request: Any) -> Callable[[], bool] | None:
    """What is asked between steps; None in a version of Triton whose requests cannot say."""
    found: Callable[[], bool] | None = getattr(request, "is_cancelled", None)
    return found
