"""The emulators' control paths, for a test that drives an emulator in another process."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson

from tests.emulators.faults import Faults
from tests.emulators.http import Request, Response, json_response

if TYPE_CHECKING:
    from tests.emulators.server import Emulator


async def control(emulator: Emulator, request: Request) -> Response:
    """Answer a path under ``/__emulator__/``.

    ``GET state``; ``GET until?counter=requests&at_least=5&timeout=30`` answers when the counter is there (408 else);
    ``POST faults`` (fields of `Faults`), ``hold`` (``after``, ``when``), ``release`` (``drop``),
    ``latency`` (``seconds``), ``reset``. Every answer but an error is the state.
    """
    verb = request.path.removeprefix("/__emulator__/")
    body = orjson.loads(request.body) if request.body else {}
    try:
        if verb == "until":
            return await _until(emulator, {name: values[0] for name, values in request.query.items()})
        if verb == "faults":
            emulator.faults = Faults.from_json(body)
        elif verb == "hold":
            emulator.hold(**body)
        elif verb == "latency":
            emulator.latency_seconds = float(body["seconds"])
        elif verb == "release":
            emulator.release(**body)
        elif verb == "reset":
            emulator.reset_counts()
        elif verb != "state":
            return json_response({"message": f"no such path: {verb}"}, 404)
    except (ValueError, TypeError, KeyError) as error:
        return json_response({"message": str(error)}, 400)
    return json_response(emulator.state())


async def _until(emulator: Emulator, query: dict[str, str]) -> Response:
    deadline = time.monotonic() + float(query.get("timeout", "30"))
    while emulator.state()[query["counter"]] < float(query["at_least"]):
        if time.monotonic() > deadline:
            return json_response(emulator.state(), 408)
        await asyncio.sleep(0.005)
    return json_response(emulator.state())
