"""An emulator as a process of its own: ``python -m tests.emulators openai --port 8001 --latency 0.4``."""

from __future__ import annotations

import argparse
import signal

from tests.emulators.cohere import CohereEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.pinecone import PineconeEmulator
from tests.emulators.server import Emulator


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulators", description=__doc__)
    parser.add_argument("provider", choices=["cohere", "openai", "pinecone"])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--api-key", default=None)
    parser.add_argument(
        "--index", action="append", default=[], metavar="NAME:DIMENSION", help="pinecone: an index to have"
    )
    parser.add_argument("--drop-values", action="store_true", help="pinecone: judge values without keeping them")
    parser.add_argument("--requests-per-minute", type=float, default=None, help="openai")
    parser.add_argument("--tokens-per-minute", type=float, default=None, help="openai")
    parser.add_argument("--hide-limits", action="store_true", help="openai: no answer names the limits")
    parser.add_argument("--inputs-per-minute", type=float, default=None, help="cohere")
    return parser.parse_args(arguments)


def build(asked: argparse.Namespace) -> Emulator:
    """The emulator that the command line asks for."""
    keys = {} if asked.api_key is None else {"api_key": asked.api_key}
    if asked.provider == "openai":
        return OpenAIEmulator(
            port=asked.port,
            latency_seconds=asked.latency,
            requests_per_minute=asked.requests_per_minute,
            tokens_per_minute=asked.tokens_per_minute,
            names_limits=not asked.hide_limits,
            **keys,
        )
    if asked.provider == "cohere":
        return CohereEmulator(
            port=asked.port, latency_seconds=asked.latency, inputs_per_minute=asked.inputs_per_minute, **keys
        )
    emulator = PineconeEmulator(
        port=asked.port,
        latency_seconds=asked.latency,
        keep_values=not asked.drop_values,
        **keys,
    )
    for index in asked.index:
        name, _, dimension = index.partition(":")
        emulator.create_index(name, int(dimension))
    return emulator


def main() -> None:
    """Serve until SIGINT or SIGTERM; the first line printed is the URL that the SDK takes."""
    # Blocked before the server's thread starts, so that the signal waits for this thread alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with build(parse()) as emulator:
        print(emulator.base_url, flush=True)  # noqa: T201 - the URL is this command's output
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
