"""The files in examples/ that deploy the server ask for options and paths that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fresco_trt.cli.main import app
from fresco_trt.serve.limits import PATIENCE
from fresco_trt.serve.ray_app import RayArguments

yaml: Any = pytest.importorskip("yaml")

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCKERFILE = (EXAMPLES / "docker" / "Dockerfile").read_text(encoding="utf-8")


def options() -> set[str]:
    """Those of `fresco-trt serve`."""
    command = getattr(get_command(app), "commands", {})["serve"]
    return {spelt for each in command.params for spelt in each.opts}


def documents() -> dict[str, Any]:
    text = (EXAMPLES / "kubernetes" / "fresco-trt.yaml").read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def container() -> Any:
    (found,) = documents()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def words(name: str) -> Iterator[list[str]]:
    """The lists of an instruction of the Dockerfile."""
    for found in re.finditer(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE):
        yield json.loads(found[1])


def test_the_image_starts_the_server_with_options_that_it_has() -> None:
    (entry,), (more,) = words("ENTRYPOINT"), words("CMD")
    assert entry[:2] == ["fresco-trt", "serve"]
    given = {word for word in (*entry, *more) if word.startswith("--")}
    shown = set(re.findall(r"fresco-trt (--engines .*)", DOCKERFILE)[0].split()[::2])
    assert given | shown <= options()


def test_kubernetes_asks_what_the_server_answers() -> None:
    found = container()
    assert {word.partition("=")[0] for word in found["args"]} <= options()
    probes = {name: found[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")}
    assert probes == {"readiness": "/ready", "liveness": "/health"}
    assert found["startupProbe"]["httpGet"]["path"] == "/ready"
    mounted = [each["mountPath"] for each in found["volumeMounts"]]
    paths = [word.partition("=")[2] for word in found["args"] if "/" in word]
    assert all(path.startswith(tuple(f"{folder}/" for folder in mounted)) for path in paths)
    service = documents()["Service"]["spec"]
    assert service["selector"] == documents()["Deployment"]["spec"]["selector"]["matchLabels"]


def test_a_pod_gets_the_time_to_answer_what_it_accepted() -> None:
    spec = documents()["Deployment"]["spec"]["template"]["spec"]
    drain = next(w for w in container()["args"] if w.startswith("--drain=")).partition("=")[2]
    waits = container()["lifecycle"]["preStop"]["exec"]["command"][1]
    assert spec["terminationGracePeriodSeconds"] > float(drain) + float(waits)


def test_rays_configuration_is_one_of_the_application() -> None:
    text = (EXAMPLES / "ray" / "serve.yaml").read_text(encoding="utf-8")
    (application,) = yaml.safe_load(text)["applications"]
    settings = RayArguments.model_validate(application["args"])
    assert settings.deadline == PATIENCE
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
