"""uvicorn's HTTP protocol with patience of a bounded length.

uvicorn itself waits without end for the rest of a request, and for a client to read its answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from fresco_trt.serve.limits import Limits


class PatientProtocol(H11Protocol):
    """Ends the connection of one who sends or reads too slowly."""

    limits: ClassVar[Limits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._wait_for_sender()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait_for_sender()
        elif self._receiving is not None:  # the request is whole
            self._receiving.cancel()
            self._receiving = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self.transport.is_closing():
            self._wait_for_reader()  # of what is left

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._receiving, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _wait_for_sender(self) -> None:
        if self._receiving is None:
            self._receiving = self._ends_after(self.limits.receive_seconds)

    def _wait_for_reader(self) -> None:
        if self._sending is None:
            self._sending = self._ends_after(self.limits.send_seconds)

    def _ends_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


def patient_protocol(limits: Limits) -> type[PatientProtocol]:
    """The protocol class of a server with those limits; uvicorn makes one for each connection."""
    return type("PatientProtocol", (PatientProtocol,), {"limits": limits})
