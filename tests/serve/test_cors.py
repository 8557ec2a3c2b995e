from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from magtiles_seg.errors import ConfigError
from magtiles_seg.serve.auth import new_key
from magtiles_seg.serve.settings import Settings

PAGE = "https://mes.example"
OPEN, READ = "access-control-allow-origin", "access-control-expose-headers"


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    return new_key("page")


@pytest.fixture(scope="module")
def client(open_client: Any, key: tuple[str, str]) -> TestClient:  # noqa: ANN401
    opened: TestClient = open_client(
        cors_origins=f"{PAGE}/, http://Other.example:8080", api_keys=key[1], max_body_mb=0.1
    )
    return opened


@pytest.mark.parametrize("asked", ["x-api-key", "authorization", "x-request-id, content-type", ""])
def test_preflight_of_a_post_with_any_header_is_allowed(client: TestClient, asked: str) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    headers |= {"Access-Control-Request-Headers": asked} if asked else {}
    reply = client.options("/analyze", headers=headers)
    assert reply.status_code == 200
    assert reply.headers[OPEN] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]


def test_preflight_from_a_public_page_to_a_private_network_is_allowed(client: TestClient) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Private-Network"] = "true"
    reply = client.options("/analyze", headers=headers)
    assert reply.headers["access-control-allow-private-network"] == "true"


def test_preflight_of_another_origin_is_refused(client: TestClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = client.options("/analyze", headers=headers)
    assert reply.status_code == 400
    assert OPEN not in reply.headers


def test_page_may_read_every_header_of_an_answer(
    client: TestClient, key: tuple[str, str], png: bytes
) -> None:
    headers = {"Origin": PAGE, "X-API-Key": key[0]}
    reply = client.post("/analyze", files={"image": png}, headers=headers)
    assert reply.status_code == 200
    readable = {name.strip().lower() for name in reply.headers[READ].split(",")}
    assert {name for name in reply.headers if name.startswith("x-")} <= readable | {
        "x-content-type-options"
    }
    assert {"x-verdict", "x-score", "retry-after"} <= readable


def test_origin_is_matched_in_any_case_and_with_its_port(client: TestClient) -> None:
    origin = "http://other.example:8080"
    assert client.get("/livez", headers={"Origin": origin}).headers[OPEN] == origin


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/analyze", b"", 401),
        ("POST", "/analyze", bytes(200_000), 413),
        ("GET", "/nowhere", b"", 404),
        ("GET", "/analyze", b"", 405),
    ],
)
def test_refusal_can_be_read_by_the_page(
    client: TestClient, method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"Origin": PAGE}
    reply = client.request(method, path, content=body, headers=headers)
    assert reply.status_code == status
    assert reply.headers[OPEN] == PAGE


def test_unexpected_and_unready_can_be_read_by_the_page(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: Any = client.app

    def fail() -> str:
        raise RuntimeError("inside")

    monkeypatch.setattr(app.state.readiness, "trouble", fail)
    reply = client.get("/readyz", headers={"Origin": PAGE})
    assert (reply.status_code, reply.headers[OPEN]) == (500, PAGE)
    monkeypatch.setattr(app.state.readiness, "trouble", lambda: "warming up")
    reply = client.get("/readyz", headers={"Origin": PAGE})
    assert (reply.status_code, reply.headers[OPEN]) == (503, PAGE)


@pytest.mark.parametrize(
    "origin", ["mes.example", "https://mes.example/page", "ftp://a", "https://", "https://a b"]
)
def test_origin_that_would_never_match_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.cors_origins: expected origins such as"):
        Settings(cors_origins=origin)
