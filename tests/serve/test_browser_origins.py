"""Chromium on pages of another origin, and behind a proxy that strips a path."""
# ruff: noqa: ANN401

from __future__ import annotations

import http.client
import http.server
import runpy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect
from screens import NEEDS_CHROMIUM, PATIENCE_MS

from magtiles_seg.serve.auth import new_key

HELP = runpy.run_path(str(Path(__file__).parents[1] / "stand_ins" / "demo_page.py"))
pytestmark = NEEDS_CHROMIUM
ASK = """async ([url, key, bytes]) => {
  const form = new FormData()
  form.append("image", new Blob([new Uint8Array(bytes)]), "tile.png")
  const headers = key ? {"X-API-Key": key} : {}
  const reply = await fetch(url, {method: "POST", body: form, headers})
  return [reply.status, reply.headers.get("X-Verdict"), reply.headers.get("X-Model-SHA256"),
          (await reply.text()).slice(0, 100)]
}"""


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Blank(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>MES</title>")

    def log_message(self, *_: object) -> None:
        pass


def test_page_of_another_origin_asks_with_a_key_and_reads_verdict_and_refusals(
    browser: Browser, server_class: Any, model: Path, png: bytes
) -> None:
    key, entry = new_key("mes")
    with serving(Blank) as origin:
        flags = ("--model", str(model), "--cors-origins", origin, "--api-keys", entry)
        with server_class(*flags, "--max-body-mb", "0.2") as server:
            while httpx.get(f"{server.url}/readyz").status_code != 200:
                time.sleep(0.1)
            page = browser.new_page()
            page.goto(origin)
            url = f"{server.url}/analyze"
            status, verdict, digest, _ = page.evaluate(ASK, [url, key, list(png)])
            assert (status, len(digest)) == (200, 64)
            assert verdict in ("accept", "review", "reject")
            assert page.evaluate(ASK, [url, "", list(png)])[0] == 401
            status, _, _, text = page.evaluate(ASK, [url, key, [0] * 300_000])
            assert status == 413
            assert "Too Large" in text
            page.close()


def test_docs_page_sends_a_picture_and_shows_the_answer_below_a_path_of_a_proxy(
    browser: Browser, server_class: Any, model: Path, png: bytes
) -> None:
    key, entry = new_key("mes")
    flags = ("--model", str(model), "--api-keys", entry, "--root-path", "/line3")
    with server_class(*flags) as server:
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            time.sleep(0.1)
        with serving(proxy_of(int(server.url.rpartition(":")[2]), {})) as origin:
            page = browser.new_page()
            page.goto(f"{origin}/line3/docs")
            picture = {"name": "tile.png", "mimeType": "image/png", "buffer": png}
            page.get_by_label("Picture").set_input_files(picture)
            page.get_by_role("button", name="Send").click()
            expect(page.locator("#status")).to_contain_text("401")
            page.get_by_label("X-API-Key").fill(key)
            page.get_by_role("button", name="Send").click()
            expect(page.locator("#status")).to_contain_text("200")
            expect(page.locator("#overlay")).to_be_visible()
            expect(page.locator("#answer")).to_contain_text('"verdict"')
            page.close()


def proxy_of(port: int, headers: dict[str, str]) -> type[http.server.BaseHTTPRequestHandler]:
    """Return a proxy that serves `/line3/…` and passes on `/…`, streams too."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/line3/"):
                self.send_error(404)
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            passed = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            passed |= {k: v.format(host=self.headers["Host"]) for k, v in headers.items()}
            upstream.request(self.command, self.path.removeprefix("/line3"), body, passed)
            reply = upstream.getresponse()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while part := reply.read1(65536):
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                pass  # the browser left
            upstream.close()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Proxy


@pytest.mark.parametrize(
    ("how", "flags", "headers"),
    [
        ("mounted", ("--root-path", "/line3"), {}),
        ("alone", ("--root-path", "/line3"), {"X-Forwarded-Host": "{host}"}),
        ("mounted", (), {"X-Forwarded-Prefix": "/line3", "X-Forwarded-Host": "{host}"}),
    ],
)
def test_demo_below_a_path_of_a_proxy_loads_whole_and_works(
    browser: Browser,
    model: Path,
    tmp_path: Path,
    how: str,
    flags: tuple[str, ...],
    headers: dict[str, str],
) -> None:
    demo = HELP["Demo"](how, tmp_path, "--model", str(model), *flags)
    with demo, serving(proxy_of(demo.port, headers)) as origin:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        failed: list[str] = []
        page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
        page.goto(f"{origin}/line3/")
        if how == "mounted":
            page.get_by_text("Try it in the browser").click()
        check_demo(page)
        assert [url for url in failed if not url.endswith("/favicon.ico")] == []
        page.close()


def check_demo(page: Page) -> None:
    """See that the page shows its pictures, and that an example brings others."""
    expect(page.locator("#verdict b")).to_be_visible(timeout=PATIENCE_MS)
    shown = page.locator("#overlay img").first
    expect(shown).to_be_visible()
    before = str(shown.get_attribute("src"))
    page.locator("#examples .thumbnail-item").last.click()
    expect(shown).not_to_have_attribute("src", before, timeout=PATIENCE_MS)
    assert "/line3/demo/" in str(shown.get_attribute("src"))
    width = "document.querySelector('#overlay img').naturalWidth > 0"
    page.wait_for_function(width)
