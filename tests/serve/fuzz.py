"""Thousands of malformed requests to a server, and what became of each.

    python -m tests.serve.fuzz --requests 10000 --out bench/results/fuzz-http.json

Most go to the application in this process. What is no HTTP goes over a socket to a whole server,
and so do requests that schemathesis makes of the interface's own description, each answer of which
is held against it. Engines are scripted: nothing here is about pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fresco_trt.serve.app import Service, app_of
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.openapi import Images
from tests.serve.conftest import EDITS, GENERATIONS, Running, serving
from tests.serve.malformed import KEY, KINDS, Sent, wire
from tests.serve.scripted import ScriptedPipelines

PATIENCE = 20
"""Seconds; what is not answered by then hangs."""
FAULTS = ("5xx", "hang", "status", "form", "unnamed", "accepted", "schema")
"""A status of 500 or more; no answer; a status that the interface does not tell of; a body that is
none of its forms; an unknown field that is not named; an answer to what must be refused; what
schemathesis finds.
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
)
"""Of schemathesis, that hold of every answer; which sizes are built, the description cannot say."""
LIMITS = {"images": 3, "prompt": 1000, "source": 1 << 20, "body_seconds": 5.0}


@dataclass(kw_only=True)
class Answered:
    """A status (0 for a connection that was closed without one), and the body."""

    status: int
    body: bytes = b""
    media_type: str = ""


@dataclass
class Tally:
    """What became of the requests of one kind."""

    kind: str
    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def count(
        self, request: Any, answer: Answered | None, seconds: float, faults: set[str]
    ) -> None:
        """A request, and what is wrong with its answer."""
        self.requests += 1
        self.longest = max(self.longest, seconds)
        self.statuses[0 if answer is None else answer.status] += 1
        self.faults.update(faults)
        if faults and len(self.examples) < 5:
            said = answer.body[:300] if answer else b""
            self.examples.append(
                (", ".join(sorted(faults)), f"{request!r}"[:1000] + f" -> {said!r}")
            )

    @property
    def row(self) -> dict[str, Any]:
        """As it is stored."""
        statuses = {str(status or "closed"): n for status, n in sorted(self.statuses.items())}
        return {
            "kind": self.kind,
            "requests": self.requests,
            "longest_seconds": round(self.longest, 3),
            "statuses": statuses,
            "faults": {each: self.faults[each] for each in FAULTS},
        }


# --- the application in this process ----------------------------------------------------------


class InProcess:
    """Two applications in this process: one for everybody, and one that asks for a key."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._services = [_service(()), _service((KEY,))]
        self._apps: list[Any] = [app_of(service) for service in self._services]
        document = self._apps[0]._app.openapi()
        self.declared = {
            (method.upper(), path): {int(status) for status in operation["responses"]}
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        for service in self._services:
            runner.run(_started(service))

    def close(self) -> None:
        """End the drawing threads."""
        for service in self._services:
            service.queue.close(PATIENCE)

    def ask(self, sent: Sent, keyed: bool) -> Answered | None:
        """The answer; None where there is none in time."""
        return self._runner.run(_answer(self._apps[keyed], sent))


def _service(keys: tuple[bytes, ...]) -> Service:
    return Service(pipelines=quiet(), limits=Limits(**LIMITS), keys=keys)  # type: ignore[arg-type]


def quiet() -> ScriptedPipelines:
    """Pipelines that draw whatever is asked, and obey no prompt."""
    pipelines = ScriptedPipelines(64, editing=(128,))
    for script in pipelines.scripts.values():
        script.obeys = False
    return pipelines


async def _started(service: Service) -> None:
    service.queue.start(lambda error: None)
    while service.queue.state != "ready":
        await asyncio.sleep(0.01)


async def _answer(app: Any, sent: Sent) -> Answered | None:
    parts = list(sent.parts) or [b""]
    answer = Answered(status=0)
    done = asyncio.Event()

    async def receive() -> Any:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.media_type = dict(message["headers"])[b"content-type"].decode()
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": sent.path,
        "raw_path": sent.path.encode("utf-8", "replace"),
        "root_path": "",
        "query_string": sent.query,
        "headers": [(name.lower(), value) for name, value in sent.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    try:
        async with asyncio.timeout(PATIENCE):
            await app(scope, receive, send)
    except TimeoutError:
        return None
    except Exception as error:  # a server would answer 500
        return Answered(status=500, body=repr(error).encode())
    finally:
        done.set()
    return answer


# --- what is right ----------------------------------------------------------------------------


def faults_of(sent: Sent, answer: Answered | None, declared: dict[Any, set[int]]) -> set[str]:
    """What is wrong with an answer, of `FAULTS`."""
    if answer is None:
        return {"hang"}
    found = set()
    if answer.status >= 500:
        found.add("5xx")
    allowed = declared.get((sent.method, sent.path), {200, 401, 404, 405, 413})
    if answer.status not in allowed | {405}:
        found.add("status")
    if sent.method != "HEAD" and not _has_form(sent, answer):
        found.add("form")
    if answer.status == 200 and not sent.may_draw:
        found.add("accepted")
    if sent.unknown and answer.status == 400 and not _names(sent.unknown, answer):
        found.add("unnamed")
    return found


def _has_form(sent: Sent, answer: Answered) -> bool:
    try:
        if answer.status != 200:
            error = json.loads(answer.body)["error"]
            message = error["message"]
            fits = error.keys() == {"message", "type", "param", "code"} and error["code"]
            return bool(fits and 0 < len(message) <= 1000 and message.isprintable())
        if answer.media_type.startswith("text/event-stream"):
            return b".completed\n" in answer.body
        if sent.path.startswith("/v1/images/"):
            Images.model_validate_json(answer.body)
    except (ValueError, KeyError, TypeError, ValidationError):
        return False
    return True


def _names(unknown: tuple[str, ...], answer: Answered) -> bool:
    """Whether one of them is named; long ones by their beginnings."""
    error = json.loads(answer.body)["error"]
    return error["code"] == "unknown_field" and error["param"] in {name[:60] for name in unknown}


# --- a kind -----------------------------------------------------------------------------------


def attempt(
    strategy: st.SearchStrategy[Any], count: int, number: int, ask: Callable[[Any], None]
) -> None:
    """Ask that many requests of a strategy, the same in every run with the same number."""
    left = count
    for round_ in range(1000):
        if not left:
            return
        before = left

        @seed(number * 1000 + round_)
        @settings(
            max_examples=left,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(request: Any) -> None:
            nonlocal left
            if left:
                left -= 1
                ask(request)

        each()
        assert left < before


def in_process(counts: dict[str, int], number: int) -> Iterator[Tally]:
    """The kinds that go to the application itself."""
    with asyncio.Runner() as runner:
        process = InProcess(runner)
        for kind, count in counts.items():
            tally = Tally(kind)

            def ask(sent: Sent, tally: Tally = tally) -> None:
                began = monotonic()
                answer = process.ask(sent, keyed=tally.kind == "keys")
                faults = faults_of(sent, answer, process.declared)
                tally.count(sent, answer, monotonic() - began, faults)

            attempt(KINDS[kind](), count, number, ask)
            yield tally
        process.close()


def over_the_wire(running: Running, count: int, number: int) -> Tally:
    """What is no HTTP: refused or closed, and never answered with a failure."""
    tally = Tally("wire")

    def ask(raw: bytes) -> None:
        began = monotonic()
        answer: Answered | None = None
        try:
            with running.socket() as sent:
                sent.settimeout(PATIENCE)
                answer = Answered(status=0)
                try:
                    sent.sendall(raw)
                    sent.shutdown(1)
                    answer.body = sent.recv(65536)
                except (BrokenPipeError, ConnectionResetError, OSError) as error:
                    if isinstance(error, TimeoutError):
                        raise
                if answer.body.startswith(b"HTTP/1.1 "):
                    answer.status = int(answer.body[9:12])
        except TimeoutError:
            answer = None
        faults = {"hang"} if answer is None else set()
        if answer is not None and answer.status >= 500:
            faults.add("5xx")
        tally.count(raw, answer, monotonic() - began, faults)

    attempt(wire(), count, number, ask)
    return tally


def of_the_interface(running: Running, count: int, number: int) -> Tally:
    """Requests that schemathesis makes of the description, right and wrong in turns, and its checks
    of each answer.
    """
    import schemathesis
    from schemathesis import GenerationMode, checks
    from schemathesis.core.failures import FailureGroup

    schema = schemathesis.openapi.from_dict(running.ask("/openapi.json").json)
    held = checks.load_all_checks() or [checks.CHECKS.get_one(name) for name in CHECKS]
    tally = Tally("interface")

    def ask(case: Any) -> None:
        began = monotonic()
        faults, answer, said = set(), None, b""
        try:
            given = case.call(base_url=running.url, timeout=PATIENCE)
            answer = Answered(status=given.status_code, body=given.content)
            case.validate_response(given, checks=held)
        except FailureGroup as failures:
            faults, said = {"schema"}, str(failures.exceptions[0]).encode()
        except TimeoutError:
            faults = {"hang"}
        if answer is not None:
            faults |= {"5xx"} if answer.status >= 500 else set()
            answer.body = said + answer.body
        tally.count(case.body, answer, monotonic() - began, faults)

    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    posts = [schema[path]["POST"] for path in (GENERATIONS, EDITS)]
    model = schema["/v1/models/{name}"]["GET"]
    wanted = [(each, mode) for each in posts for mode in modes] + [(model, modes[0])]
    for place, (operation, mode) in enumerate(wanted):
        share = count // len(wanted) + (place < count % len(wanted))
        attempt(operation.as_strategy(generation_mode=mode), share, number, ask)
    return tally


# --- all of it --------------------------------------------------------------------------------


def run(counts: dict[str, int], number: int = 0) -> Iterator[Tally]:
    """Requests of each kind that is named, so many; what became of them, kind by kind."""
    inside = {kind: count for kind, count in counts.items() if kind in KINDS}
    yield from in_process(inside, number)
    with serving(quiet(), **LIMITS) as running:
        if "wire" in counts:
            yield over_the_wire(running, counts["wire"], number)
        if "interface" in counts:
            yield of_the_interface(running, counts["interface"], number)
        assert running.ask("/health").status == 200


def main() -> int:
    """Ask, count, store; 1 if an answer was none that may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = dict.fromkeys((*KINDS, "wire"), given.requests // 10)
    counts["interface"] = given.requests - sum(counts.values())
    tallies = []
    for tally in run(counts, given.seed):
        tallies.append(tally)
        print(json.dumps(tally.row), *tally.examples, sep="\n  ", file=sys.stderr, flush=True)
    statuses = sum((tally.statuses for tally in tallies), Counter[int]())
    faults = sum((tally.faults for tally in tallies), Counter[str]())
    found = {
        "requests": sum(tally.requests for tally in tallies),
        "statuses": {str(status or "closed"): n for status, n in sorted(statuses.items())},
        "faults": {each: faults[each] for each in FAULTS},
        "longest_seconds": round(max(tally.longest for tally in tallies), 3),
        "rows": [tally.row for tally in tallies],
    }
    print(json.dumps(found, indent=1))
    if given.out is not None:
        from fresco_trt.bench.record import circumstances, store

        store({**circumstances(), **found}, given.out)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
