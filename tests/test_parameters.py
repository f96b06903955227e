"""The form that Prefect's UI makes of a flow's parameters, and what a server refuses before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError

from flows.ingest import ingest
from flows.replay import replay
from tasks.settings import IngestSettings

FLOWS = [pytest.param(flow, id=flow.name) for flow in (ingest, replay)]


def schema_of(flow: Flow[..., Any]) -> dict[str, Any]:
    return flow.parameters.model_dump_for_openapi()


def fields(flow: Flow[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every parameter and every field of a nested model."""
    schema = schema_of(flow)
    yield from schema["properties"].items()
    for definition in schema.get("definitions", {}).values():
        yield from definition.get("properties", {}).items()


def refusal(flow: Flow[..., Any], **parameters: Any) -> str:
    """What a server answers to these parameters; empty where it takes them."""
    try:
        validate(parameters, schema_of(flow), raise_on_error=True)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("flow", FLOWS)
def test_every_field_of_the_form_has_a_type_a_title_and_a_description(flow: Flow[..., Any]) -> None:
    """A person who fills in the form needs no other page."""
    for name, field in fields(flow):
        assert field.get("title") == name
        assert field.get("description"), name
        assert {"type", "anyOf", "$ref", "enum", "const"} & set(field), name


def test_the_form_offers_each_provider_by_its_name() -> None:
    """A flat union: nested ones have no title in the form."""
    schema = schema_of(ingest)
    for name, expected in {
        "embedder": ["Shorthand", "Hashing", "OpenAI", "Cohere", "Sentence Transformers"],
        "store": ["Shorthand", "LanceDB", "Pinecone", "Qdrant", "Weaviate", "pgvector"],
    }.items():
        offered = [
            schema["definitions"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
            for choice in schema["properties"][name]["anyOf"]
        ]
        assert [choice["title"] for choice in offered] == expected


def test_reasons_are_an_enumeration() -> None:
    """Nobody has to know the words by heart."""
    assert schema_of(replay)["definitions"]["Reason"]["enum"] == [
        "malformed",
        "invalid",
        "too_large",
        "rejected",
        "exhausted",
    ]


@pytest.mark.parametrize("flow", FLOWS)
def test_no_parameter_holds_a_secret(flow: Flow[..., Any]) -> None:
    """Prefect stores and shows parameters in clear, so what sounds like a secret takes only the name of one."""
    for name, field in fields(flow):
        assert field.get("format") != "password"
        if re.search(r"key|password|secret|token|credential", name):
            assert field["default"].isupper(), name
            assert not re.search(field["pattern"], "sk-proj-1Ab2"), name
            assert not re.search(field["pattern"], "pcsk_1Ab2"), name


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 0},
        {"batch_size": "10"},
        {"batch_size": 5000},
        {"source": ""},
        {"job_id": "../etc"},
        {"embedder": "opnai"},
        {"embedder": "hashing:many"},
        {"embedder": {"model": "text-embedding-3-small"}},
        {"embedder": {"kind": "openai", "modle": "text-embedding-3-small"}},
        {"embedder": {"kind": "openai", "api_key": "sk-proj-1Ab2"}},
        {"store": "chroma:x"},
        {"store": "pinecone"},
        {"store": {"kind": "pinecone"}},
        {"max_failed": "150%"},
        {"max_failed": -1},
        {"max_memory_percent": 0},
        {"rpm": 0},
    ],
    ids=str,
)
def test_a_server_refuses_bad_values_before_a_run_starts(parameters: dict[str, Any]) -> None:
    """The answer names the parameter."""
    assert f"field '{next(iter(parameters))}" in refusal(ingest, **parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"job_id": "docs", "batch_size": 10},
        {"embedder": "hashing"},
        {"embedder": "openai"},
        {"embedder": "openai:text-embedding-3-small:256"},
        {"embedder": "sentence-transformers:./model"},
        {"embedder": {"kind": "cohere", "dimensions": 256}},
        {"store": "lancedb"},
        {"store": "lancedb:./data/docs"},
        {"store": "pinecone:docs/here"},
        {"store": "qdrant:http://127.0.0.1:6333/docs"},
        {"store": "pgvector:postgresql://me@localhost/db/docs"},
        {"store": {"kind": "pinecone", "index": "docs"}},
        {"max_failed": "5%"},
        {"max_failed": "12"},
        {"rpm": None, "tpm": 1000},
    ],
    ids=str,
)
def test_what_a_server_takes_a_run_takes(parameters: dict[str, Any]) -> None:
    """The two checks agree."""
    assert refusal(ingest, **parameters) == ""
    IngestSettings(**parameters)
