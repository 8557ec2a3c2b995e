from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from magtiles_seg.errors import ConfigError
from magtiles_seg.serve.cors import Forwarded
from magtiles_seg.serve.settings import Settings


def client(root_path: str = "") -> TestClient:
    def say(request: Request) -> JSONResponse:
        return JSONResponse({"url": str(request.url), "root": request.scope["root_path"]})

    routes = [Route("/here", say), Mount("/below", routes=[Route("/here", say)])]
    app = Starlette(routes=routes, middleware=[Middleware(Forwarded, root_path=root_path)])
    return TestClient(app)


PROXY = {
    "X-Forwarded-Prefix": "/line3/",
    "X-Forwarded-Host": "mes.example, inner",
    "X-Forwarded-Proto": "https",
}


@pytest.mark.parametrize("path", ["/here", "/line3/here"])
def test_root_path_holds_for_a_proxy_that_strips_it_and_for_one_that_does_not(path: str) -> None:
    said = client("/line3").get(path).json()
    assert said == {"url": "http://testserver/line3/here", "root": "/line3"}


def test_what_the_proxy_says_is_the_address() -> None:
    said = client().get("/below/here", headers=PROXY).json()
    assert said == {"url": "https://mes.example/line3/below/here", "root": "/line3/below"}


def test_setting_goes_before_what_the_proxy_says() -> None:
    said = client("/mine").get("/here", headers=PROXY).json()
    assert said["root"] == "/mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-Prefix", "//evil.example"),
        ("X-Forwarded-Prefix", "/a/../b"),
        ("X-Forwarded-Prefix", '/"><script>'),
        ("X-Forwarded-Prefix", "line3"),
        ("X-Forwarded-Prefix", "/" + "a" * 300),
        ("X-Forwarded-Host", "a b"),
        ("X-Forwarded-Host", "evil.example/x?"),
        ("X-Forwarded-Host", "user@evil.example"),
        ("X-Forwarded-Proto", "javascript"),
    ],
)
def test_header_that_is_no_address_is_ignored(name: str, value: str) -> None:
    said = client().get("/here", headers={name: value}).json()
    assert said == {"url": "http://testserver/here", "root": ""}


@pytest.mark.parametrize(
    ("given", "kept"), [("/line3/", "/line3"), ("a/b", "/a/b"), ("/", None), ("", None)]
)
def test_root_path_is_kept_with_a_slash_before_and_none_behind(
    given: str, kept: str | None
) -> None:
    assert Settings.read({"MAGTILES_ROOT_PATH": given}).root_path == kept


@pytest.mark.parametrize("path", ["/a b", "/a/../b", "https://x", "/a?b", "/a#b"])
def test_root_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="expected a path such as '/line3'"):
        Settings(root_path=path)


def test_service_links_and_document_start_from_the_root_path(open_client: Any) -> None:  # noqa: ANN401
    service = open_client(root_path="/line3")
    assert 'href="/line3/docs"' in service.get("/").text
    assert service.get("/openapi.json").json()["servers"] == [{"url": "/line3"}]
    assert service.get("/line3/livez").text == "alive\n"


def test_service_follows_the_prefix_of_a_proxy(open_client: Any) -> None:  # noqa: ANN401
    service = open_client()
    assert 'href="/line3/docs"' in service.get("/", headers=PROXY).text
    assert service.get("/openapi.json", headers=PROXY).json()["servers"] == [{"url": "/line3"}]
    assert "servers" not in service.get("/openapi.json").json()


@pytest.mark.parametrize("path", ["/livez", "/line3/livez"])
def test_requests_below_a_root_path_are_counted_by_the_services_own_path(
    open_client: Any,  # noqa: ANN401
    path: str,
) -> None:
    service = open_client(root_path="/line3")
    assert service.get(path).status_code == 200
    counts = service.get("/metrics").text
    assert 'magtiles_requests_total{path="/livez",status="200"} 1.0' in counts
    assert 'path="other"' not in counts
