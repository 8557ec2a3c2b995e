from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKED = (
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
)


@pytest.fixture(scope="module")
def schema(server_class: Any, model: Path) -> Iterator[Any]:  # noqa: ANN401
    with server_class("--model", str(model), "--max-files", "2") as server:
        server.wait_ready()
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def bombard(schema: Any, examples: int) -> set[str]:  # noqa: ANN401
    """Send generated requests to every operation, check the answers, and return the paths."""
    paths = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def once(case: Any) -> None:  # noqa: ANN401
            case.call_and_validate(checks=CHECKED)

        once()
    return paths


def test_generated_requests_get_what_the_document_promises(schema: Any) -> None:  # noqa: ANN401
    assert "/analyze" in bombard(schema, 8)


@pytest.mark.endurance
def test_very_many_generated_requests_get_what_the_document_promises(schema: Any) -> None:  # noqa: ANN401
    bombard(schema, 500)
