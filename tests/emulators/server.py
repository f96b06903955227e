"""What the emulators share: counters, faults, latency, a gate that holds requests, and the control paths over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Self

from tests.emulators.control import control
from tests.emulators.faults import STATUS, Faults, FaultSource, Kind
from tests.emulators.http import Cut, LoopbackServer, Request, Response

When = Literal["before", "after"]

TIMES_KEPT = 1_000_000
"""How many arrival times are kept; older ones are dropped."""


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error of the emulator
    """Carries the answer to a request that is refused."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Emulator(ABC):
    """A provider on loopback. Counters may be read from any thread; they are written by the server's thread alone.

    ``latency_seconds`` is waited before each answer. ``requests``, ``refused`` (by status), ``by_path``,
    ``in_flight``, ``max_in_flight``, ``held`` and ``request_times`` (monotonic seconds) leave out the control paths.
    ``errors`` are the emulator's own; leaving its context raises the first.
    """

    request_id_header = "x-request-id"

    def __init__(self, *, port: int = 0, latency_seconds: float = 0.0, faults: Faults | None = None) -> None:
        self.latency_seconds = latency_seconds
        self._port = port
        self._server: LoopbackServer | None = None
        self._changed = threading.Condition()
        self._gate_open = asyncio.Event()
        self._gate_open.set()
        self._pass_left = 0
        self._hold_when: When = "before"
        self._dropping = False
        self._faults = FaultSource(faults or Faults())
        self.errors: list[Exception] = []
        self.in_flight = 0
        self.held = 0
        self.reset_counts()

    # The server's life

    def start(self) -> Self:
        """Listen on 127.0.0.1."""
        is_open, self._gate_open = self._gate_open.is_set(), asyncio.Event()  # an event belongs to one loop
        if is_open:
            self._gate_open.set()
        self._server = LoopbackServer(self._handle, self._port).start()
        self._port = self._server.port
        return self

    def stop(self) -> None:
        """Cut every connection; a later `start` listens on the same port and knows what was stored."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if self.errors and kind is None:
            raise self.errors[0]

    @property
    def url(self) -> str:
        """The root, without a path: ``http://127.0.0.1:{port}``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What the SDK is pointed at."""
        return self.url

    # What a test sets and reads

    @property
    def faults(self) -> Faults:
        """The faults in force; setting them starts their sequence anew."""
        return self._faults.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = FaultSource(faults)

    @property
    def injected(self) -> Counter[str]:
        """How often each fault was dealt since the faults were set."""
        return self._faults.injected

    def fail_after(self, requests: int) -> None:
        """Answer 503 once so many more requests were answered, until `recover`."""
        self.faults = replace(self.faults, fail_after=requests)

    def recover(self) -> None:
        """No faults from now on."""
        self.faults = Faults()

    def hold(self, *, after: int = 0, when: When = "before") -> None:
        """Let ``after`` requests pass and hold those that follow, before or after their work is done."""

        def close_gate() -> None:
            self._pass_left, self._hold_when, self._dropping = after, when, False
            self._gate_open.clear()

        self._on_loop(close_gate)

    def release(self, *, drop: bool = False) -> None:
        """Let every held request go on; with ``drop`` reset its connection instead, doing nothing more for it."""

        def open_gate() -> None:
            self._dropping = drop
            self._gate_open.set()

        self._on_loop(open_gate)

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
        """Block this thread until the condition on the counters holds; TimeoutError when it does not in time."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_seconds):
                raise TimeoutError(f"after {timeout_seconds} s: {self.state()}")

    def wait_held(self, requests: int = 1, timeout_seconds: float = 30.0) -> None:
        """Block this thread until so many requests are held."""
        self.wait_for(lambda: self.held >= requests, timeout_seconds)

    def reset_counts(self) -> None:
        """Set every counter to zero; what is stored stays."""
        self.requests = 0
        self.refused: Counter[int] = Counter()
        self.by_path: Counter[str] = Counter()
        self.max_in_flight = self.in_flight
        self.request_times: deque[float] = deque(maxlen=TIMES_KEPT)

    def state(self) -> dict[str, Any]:
        """The counters as a JSON object."""
        return {
            "requests": self.requests,
            "refused": {str(status): count for status, count in self.refused.items()},
            "by_path": dict(self.by_path),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "held": self.held,
            "injected": dict(self.injected),
        }

    # What a provider decides

    @abstractmethod
    def answer(self, request: Request, fault: Kind) -> Response:
        """Do the work and answer; `Refused` carries a refusal."""

    @abstractmethod
    def fault_response(self, status: int) -> Response:
        """The provider's own answer to an injected 429, 500 or 503."""

    @abstractmethod
    def check_admission(self, request: Request) -> None:
        """Refuse a wrong key, before any fault is dealt."""

    # One request

    async def _handle(self, request: Request) -> Response | Cut:
        if request.path.startswith("/__emulator__/"):
            return await control(self, request)
        self.requests += 1
        self.by_path[request.path] += 1
        self.request_times.append(time.monotonic())
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self._notify()
        number = self.requests
        try:
            answer = await self._answer(request)
        except Exception as error:  # noqa: BLE001 - a fault of the emulator's own, raised when it is left
            self.errors.append(error)
            answer = Response(500, repr(error).encode(), {"content-type": "text/plain"})
        finally:
            self.in_flight -= 1
            self._notify()
        if isinstance(answer, Response):
            return replace(answer, headers={**answer.headers, self.request_id_header: f"req_{number}"})
        return answer

    async def _answer(self, request: Request) -> Response | Cut:
        holds = self._holds_next()
        if holds and self._hold_when == "before" and not await self._passes_gate():
            return Cut()
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        fault: Kind = "none"
        try:
            self.check_admission(request)
            fault = self._faults.deal(request.path)
            if fault == "reset_before":
                return Cut()
            if fault in STATUS:
                raise Refused(self.fault_response(STATUS[fault]))  # noqa: TRY301 - counted in one place
            response = self.answer(request, fault)
        except Refused as refusal:
            response = refusal.response
            self.refused[response.status] += 1
        dropped = holds and self._hold_when == "after" and not await self._passes_gate()
        if dropped or fault == "reset_after":
            return Cut()
        return Cut(response, len(response.body) // 2) if fault == "truncate" else response

    def _holds_next(self) -> bool:
        if self._gate_open.is_set():
            return False
        self._pass_left -= 1
        return self._pass_left < 0

    async def _passes_gate(self) -> bool:
        self.held += 1
        self._notify()
        try:
            await self._gate_open.wait()
        finally:
            self.held -= 1
        return not self._dropping

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_loop(self, act: Callable[[], None]) -> None:
        """Do it on the server's loop, and return when it is done."""
        if self._server is None:
            act()
        else:
            self._server.call(act)
