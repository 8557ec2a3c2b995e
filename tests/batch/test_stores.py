"""Pictures on web and FTP servers: real servers on the loopback."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

import cv2
import numpy as np
import pytest

pytest.importorskip("aiohttp")

from magtiles_seg.batch import Engine, Job, run_batch
from magtiles_seg.batch.source import Reader, list_names, resolve
from magtiles_seg.batch.stores import is_url
from magtiles_seg.errors import DataError, ImageError
from magtiles_seg.inputs import Survey
from magtiles_seg.marking import mark_png

NAMES = ("a.png", "B.PNG", "day 1/ü.png", "day 1/x#1.jpg", "day 1/100%.tif", "day 1/p&q.png")
ANSWERS = {404: "no such file", 301: "HTTP: TooManyRedirects"}
PNG = cv2.imencode(".png", np.full((40, 40), 99, np.uint8))[1].tobytes()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and answers on some paths with an error."""

    asked: ClassVar[Counter[str]] = Counter()
    headers_seen: ClassVar[list[str]] = []
    queries: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked[path] += 1
        self.queries.append(urlsplit(self.path).query)
        self.headers_seen.append(self.headers.get("Authorization", ""))
        kind, _, rest = path.lstrip("/").partition("/")
        if kind == "status":
            code = int(rest[:3])
            self.send_response(code)
            if code in (301, 302):
                self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/{rest}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "www"
    for name in (*NAMES, "notes.txt", "._a.png", "__MACOSX/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    (root / "a_mask.png").write_bytes(mark_png(PNG))
    (root / "b_mask.png").write_bytes(PNG)
    Server.asked.clear()
    Server.headers_seen.clear()
    Server.queries.clear()

    def make(*words: object) -> Server:
        return Server(*words, directory=str(root))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def names(source: str, survey: Survey | None = None) -> list[str]:
    return sorted(list_names(resolve(source), patience_s=0, survey=survey))


def read(url: str, patience_s: float = 0) -> bytes:
    return Reader(url, patience_s=patience_s).read(url)


def test_index_pages_lead_to_every_picture_and_each_can_be_read(site: str) -> None:
    survey = Survey()
    found = names(f"{site}/", survey)
    assert {unquote(url) for url in found} == {f"{site}/{name}" for name in (*NAMES, "b_mask.png")}
    assert len(found) == len(NAMES) + 1
    assert {read(url) for url in found} == {PNG}
    said = "\n".join(survey.lines())
    assert "1 result of an earlier run" in said
    assert "hidden" in said


def test_masks_beside_the_images_of_a_labelled_data_set_are_left_out(
    site: str, tmp_path: Path
) -> None:
    for name in ("set 1/images/x.png", "set 1/masks/x.png", "other/masks/y.png"):
        (tmp_path / "www" / name).parent.mkdir(parents=True)
        (tmp_path / "www" / name).write_bytes(PNG)
    survey = Survey()
    assert names(f"{site}/set 1", survey) == [f"{site}/set 1/images/x.png"]
    assert "1 mask of a labelled picture, such as" in survey.lines()[0]
    assert names(f"{site}/set 1/masks") == [f"{site}/set 1/masks/x.png"]
    assert names(f"{site}/other") == [f"{site}/other/masks/y.png"]


@pytest.mark.parametrize("word", ["a.png", "a.png?token=1&size=2", "a.png#top", "moved/a.png"])
def test_url_of_one_picture_is_that_picture(site: str, word: str) -> None:
    assert names(f"{site}/{word}") == [f"{site}/{word}"]
    assert read(f"{site}/{word}") == PNG


def test_signed_url_is_sent_as_it_is(site: str) -> None:
    query = "sig=a%2Fb%2b%3D&t=a+b&c=%7E"
    assert read(f"{site}/a.png?{query}") == PNG
    assert Server.queries == [query]
    assert read(f"{site}/day 1/ü.png") == PNG


def test_glob_on_the_web_takes_what_it_matches(site: str) -> None:
    assert names(f"{site}/*.png") == [f"{site}/{name}" for name in ("a.png", "b_mask.png")]


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 410, 500, 501])
def test_answer_of_the_server_is_the_picture_s_error_at_once(site: str, code: int) -> None:
    with pytest.raises(ImageError, match=ANSWERS.get(code, f"HTTP {code} ")):
        read(f"{site}/status/{code}.png", patience_s=60)
    assert Server.asked[f"/status/{code}.png"] <= (11 if code == 301 else 3)


def test_server_that_is_overloaded_is_waited_for_and_ends_the_run(site: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read after 0 s of waiting: HTTP 503") as caught:
        read(f"{site}/status/503.png")
    assert not isinstance(caught.value, ImageError)


def test_folder_that_is_not_there_is_a_data_error(site: str) -> None:
    with pytest.raises(DataError, match=r"status/404/ cannot be listed: no such file"):
        names(f"{site}/status/404/")


def test_url_that_is_none_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no valid URL"):
        resolve("http://[::1/a.png")


def test_batch_has_a_row_for_every_url_and_none_tells_a_password(
    site: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    host = site.removeprefix("http://")
    urls = [
        f"http://me:pass%40word@{host}/a.png",
        f"{site}/B.PNG?X-Amz-Signature=s3cr3t&part=1",
        f"http://me:pass%40word@{host}/status/404.png",
        f"{site}/status/500.png?api_key=s3cr3t",
        f"{site}/notes.txt",
    ]
    (tmp_path / "list.txt").write_bytes("\r\n".join(["\ufeff# pictures", *urls]).encode())
    job = make_job(source=str(tmp_path / "list.txt"), part_rows=2, patience_s=20.0)
    outcome = run_batch(job, Engine(workers=1))
    assert (outcome.pictures, outcome.errors) == (5, 2)
    rows = pq.ParquetDataset(job.out / "parts").read().to_pylist()
    errors = {urlsplit(row["path"]).path: row["error"] for row in rows if row["error"]}
    assert "no such file" in errors["/status/404.png"]
    assert "HTTP 500" in errors["/status/500.png"]
    assert any("X-Amz-Signature=***&part=1" in row["path"] for row in rows)
    assert any(one.startswith("Basic ") for one in Server.headers_seen)
    for file in job.out.rglob("*"):
        if file.is_file() and file.parent != job.listing:
            assert b"s3cr3t" not in file.read_bytes()
            assert b"pass%40word" not in file.read_bytes()
    assert job.listing.stat().st_mode & 0o077 == 0


def test_listing_without_secrets_is_open_to_all_workers(make_job: Callable[..., Job]) -> None:
    job = make_job()
    run_batch(job, Engine(workers=1))
    assert job.listing.stat().st_mode == job.out.stat().st_mode


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does where it refuses: by the name of the bucket."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        code = self.path.strip("/").split("/")[0].split("?")[0]
        body = f"<Error><Code>{code}</Code><Message>{code}: so it is</Message></Error>".encode()
        self.send_response(200 if code == "html" else 404 if code == "NoSuchBucket" else 403)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"<html>Log in</html>" if code == "html" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    s3fs.S3FileSystem.clear_instance_cache()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("s3://AccessDenied/shots/", "AccessDenied/shots/ cannot be listed: AccessDenied: so it"),
        ("s3://AccessDenied/*.png", "s3://AccessDenied cannot be listed: AccessDenied: so it"),
        ("s3://AccessDenied/a.png", r"AccessDenied/a\.png cannot be listed: "),
        ("s3://NoSuchBucket/", "NoSuchBucket/ cannot be listed: no such file"),
        ("s3://html/", "html/ cannot be listed: what answers there is no S3 service"),
        ("s3://", "Invalid bucket name"),
        ("s3://*/a.png", "expected a bucket or host"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_bucket_that_cannot_be_listed_is_said_at_once(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(list_names(resolve(source), patience_s=60))


@pytest.mark.usefixtures("s3")
def test_name_that_no_bucket_has_is_the_picture_s_error_at_once() -> None:
    with pytest.raises(ImageError, match="Invalid bucket name"):
        read("s3://a b/c.png", patience_s=60)


@pytest.mark.usefixtures("s3")
def test_endpoint_that_is_no_address_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(DataError, match="Invalid endpoint"):
        names("s3://bucket/a.png")


FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

users = DummyAuthorizer()
users.add_user("me", "secret", sys.argv[1])
class Handler(FTPHandler):
    authorizer = users
server = FTPServer(("127.0.0.1", 0), Handler)
print(server.socket.getsockname()[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("pyftpdlib")
    (tmp_path / "ftp" / "b").mkdir(parents=True)
    for name in ("a.png", "b/x y.PNG", "b/#1.png"):
        (tmp_path / "ftp" / name).write_bytes(PNG)
    words = [sys.executable, "-W", "ignore", "-c", FTP, str(tmp_path / "ftp")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield f"ftp://me:secret@127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def test_ftp_folder_and_picture_are_listed_and_read(ftp: str) -> None:
    found = names(f"{ftp}/")
    assert found == [f"{ftp}/{name}" for name in ("a.png", "b/#1.png", "b/x y.PNG")]
    assert {read(url) for url in found} == {PNG}
    assert names(f"{ftp}/a.png") == [f"{ftp}/a.png"]
    with pytest.raises(ImageError, match=r"gone\.png' cannot be read: .*550") as caught:
        read(f"{ftp}/gone.png", patience_s=30)
    assert "secret" not in str(caught.value)


def test_ftp_is_read_by_several_threads_at_once(ftp: str, make_job: Callable[..., Job]) -> None:
    outcome = run_batch(make_job(source=f"{ftp}/", readers=4), Engine(workers=1))
    assert (outcome.pictures, outcome.errors) == (3, 0)


def test_single_object_and_literal_name_of_a_store() -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in ("x[1].png", "x1.png"):
        system.pipe(f"/one/{name}", PNG)
    assert names("memory://one/x[1].png") == ["memory://one/x[1].png"]
    assert names("memory://one/x[1-3].png") == ["memory:///one/x1.png"]
    assert names("memory://one/x1.png") == ["memory://one/x1.png"]
    system.rm("/one", recursive=True)


def test_file_url_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    url = f"file://{quote(str(tmp_path / 'a b.png'))}"
    assert names(url) == [str(tmp_path / "a b.png")]
    assert not is_url(resolve(url))
