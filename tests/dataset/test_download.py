from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg.dataset import download as module
from magtiles_seg.dataset.download import download
from magtiles_seg.errors import DataError
from magtiles_seg.files import sha256_of

CONTENT = np.random.default_rng(0).bytes(300_000)


@dataclass
class Host:
    """A server on 127.0.0.1 that closes the connection after `break_after` bytes of each answer."""

    url: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    break_after: int | None = None
    breaks_left: int = 0
    ranges: bool = True
    status: int = 200
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"] or ""
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            resumes = match and state.ranges and self.headers["If-Range"] == state.etag
            start = int(match[1]) if match and resumes else 0
            body, total = state.content[start:], len(state.content)
            self.send_response(206 if resumes else 200)
            if resumes:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.etag)
            self.end_headers()
            if state.breaks_left:
                state.breaks_left -= 1
                body = body[: state.break_after]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/tiles.zip"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_broken_transfers_are_resumed_where_they_broke(host: Host, tmp_path: Path) -> None:
    host.break_after, host.breaks_left = 100_000, 2
    seen: list[tuple[int, int | None]] = []
    path = download(
        host.url,
        tmp_path / "x",
        wait_s=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert path.read_bytes() == CONTENT
    assert host.asked == ["", "bytes=100000-", "bytes=200000-"]
    assert seen[-1] == (300_000, 300_000)
    assert seen == sorted(seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_download_given_up_is_resumed_by_the_next_call(host: Host, tmp_path: Path) -> None:
    host.break_after, host.breaks_left = 0, 3
    with pytest.raises(DataError, match=r"connection broke; gave up after 2 .* 0 bytes are kept"):
        download(host.url, tmp_path / "x", attempts=2, wait_s=0)
    host.break_after, host.breaks_left = 100_000, 1
    host.status = 200
    assert download(host.url, tmp_path / "x", attempts=1, wait_s=0).read_bytes() == CONTENT
    assert host.asked[-1] == "bytes=100000-"


def test_download_file_changed_meanwhile_starts_anew(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"old" * 1000)
    (tmp_path / "x.part.version").write_text('"zero"')
    assert download(host.url, tmp_path / "x").read_bytes() == CONTENT
    assert host.asked == ["bytes=3000-"]


def test_download_server_without_ranges_starts_anew(host: Host, tmp_path: Path) -> None:
    host.ranges = False
    host.break_after, host.breaks_left = 100_000, 1
    assert download(host.url, tmp_path / "x", wait_s=0).read_bytes() == CONTENT


def test_download_part_of_unknown_version_is_not_trusted(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"old" * 1000)
    assert download(host.url, tmp_path / "x").read_bytes() == CONTENT
    assert host.asked == [""]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 3)])
def test_download_refused_by_the_server_is_retried_only_where_that_helps(
    host: Host, tmp_path: Path, status: int, requests: int
) -> None:
    host.status = status
    with pytest.raises(DataError, match=str(status)):
        download(host.url, tmp_path / "x", attempts=3, wait_s=0)
    assert len(host.asked) == requests


def test_download_nobody_listening_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download http://127\.0\.0\.1:9/x"):
        download("http://127.0.0.1:9/x", tmp_path / "x", attempts=2, wait_s=0)


def test_download_larger_than_the_bound_is_refused(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DOWNLOAD_BYTES", 1000)
    with pytest.raises(DataError, match="exceeds the bound of 1000 bytes"):
        download(host.url, tmp_path / "x")


def test_sha256_of_known_content_is_the_known_digest(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
