"""The first malformed requests of `make fuzz-http`: none fails the server, or holds it up."""

from __future__ import annotations

import json

import pytest

from tests.serve.fuzz import Answered, faults_of, run
from tests.serve.malformed import KINDS, Sent

ERROR = {"message": "no", "type": "invalid_request_error", "param": "x", "code": "unknown_field"}
DECLARED = {("POST", Sent().path): {200, 400, 429, 500}}


@pytest.mark.filterwarnings("ignore")  # of pictures that are odd; a server has others than a test
def test_malformed_requests_are_refused_in_words() -> None:
    counts = dict.fromkeys(KINDS, 30) | {"wire": 30, "interface": 40}
    for tally in run(counts):
        assert tally.requests == counts.pop(tally.kind)
        assert not tally.examples
        assert tally.statuses.keys() - {200} or tally.kind == "interface"
    assert not counts


def answered(status: int, **error: object) -> Answered:
    return Answered(status=status, body=json.dumps({"error": {**ERROR, **error}}).encode())


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        (None, {"hang"}),
        (answered(500), {"5xx"}),
        (answered(503), {"5xx", "status"}),
        (answered(418), {"status"}),
        (answered(400), set()),
        (answered(400, param="y"), {"unnamed"}),
        (answered(400, code="invalid_value"), {"unnamed"}),
        (answered(429, message="a\nb"), {"form"}),
        (answered(429, message=""), {"form"}),
        (answered(429, message="a" * 1001), {"form"}),
        (Answered(status=429, body=b"no"), {"form"}),
        (Answered(status=200, body=b"{}"), {"form", "accepted"}),
        (
            Answered(status=200, body=b"data: x", media_type="text/event-stream"),
            {"form", "accepted"},
        ),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(answer: Answered | None, faults: set[str]) -> None:
    sent = Sent(unknown=("x",), may_draw=False)
    assert faults_of(sent, answer, DECLARED) == faults
