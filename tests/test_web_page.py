"""examples/web in Chromium: the same answer as Python's, and no other origin is asked."""

from __future__ import annotations

import csv
import io
import json
import re
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect
from screens import NEEDS_CHROMIUM, PATIENCE_MS, keep, new_page, tab_to

import magtiles_seg
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.image import read_image

NPM = shutil.which("npm")
pytestmark = [
    *NEEDS_CHROMIUM,
    pytest.mark.skipif(NPM is None, reason="needs npm: apt-get install npm"),
]

WEB = Path(__file__).parents[1] / "examples" / "web"
WHOLE = ("label", "area_px", "x0_px", "y0_px", "x1_px", "y1_px")
ANSWER = """async (name) => {
  const [decide, model, pixels] = await Promise.all(
    ["decide", "model", "pixels"].map((part) => import(`./${part}.js`)));
  const about = await (await fetch("model.json")).json();
  window.run ??= model.openModel(about, "wasm");
  const picture = await pixels.readGrey(await (await fetch(name)).blob());
  const answer = await (await window.run)(picture);
  const found = decide.findRegions(answer, about.decision, about.labels);
  const score = decide.scoreOf(answer, about.decision);
  return { mask: found.mask.join(""), rows: found.rows, score,
    verdict: decide.verdictOf(score, about.decision) };
}"""
GREY = """async (name) => {
  const { readGrey } = await import("./pixels.js");
  const file = new File([await (await fetch(name)).blob()], name);
  try {
    const { grey, width, height } = await readGrey(file);
    return { grey: [...grey], width, height };
  } catch (error) { return { error: error.message }; }
}"""


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  (so in the standard library)
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page; npm fetches the runtime where it is not there yet."""
    if not (WEB / "node_modules").is_dir():
        command = [str(NPM), "ci", "--prefix", str(WEB), "--fetch-retries=0", "--ignore-scripts"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot fetch onnxruntime-web: {done.stderr[-300:]}")
    out = tmp_path_factory.mktemp("web")
    runpy.run_path(str(WEB / "build.py"))["build"](out)
    return out


class Site:
    """A web server on a folder, which can be stopped."""

    def __init__(self, folder: Path) -> None:
        handler = partial(_Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    started = Site(folder)
    yield started
    started.stop()


def open_page(browser: Browser, url: str, screen: str = "phone", scheme: str = "light") -> Page:
    page = new_page(browser, screen, scheme)
    page.goto(url)
    expect(page.locator("#status")).to_have_text("Ready.", timeout=2 * PATIENCE_MS)
    return page


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page that only functions of its modules are called in."""
    opened = open_page(browser, site.url)
    yield opened
    opened.context.close()


def check_rows(rows: list[dict[str, Any]], defects: tuple[magtiles_seg.Defect, ...]) -> None:
    """Hold a page's regions against Python's: whole numbers equal, the others to rounding."""
    assert len(rows) == len(defects)
    for row, defect in zip(rows, defects, strict=True):
        expected = defect.row()
        assert [str(row[name]) for name in WHOLE] == [str(expected[name]) for name in WHOLE]
        for name in ("score", "centroid_x_px", "centroid_y_px", "length_px", "width_px"):
            assert float(row[name]) == pytest.approx(expected[name], abs=1e-3), name


def test_answer_is_pythons_in_many_sizes(page: Page, folder: Path) -> None:
    found = 0
    for index, (size, defect) in enumerate(
        {
            (288, 220): "crack", (330, 205): "fray", (97, 131): "uneven", (256, 256): "break",
            (64, 300): "blowhole", (31, 400): "blowhole", (9, 7): "uneven", (1, 1): None,
            (240, 300): None,
        }.items()
    ):  # fmt: skip
        size_hw = (max(size[0], 64), max(size[1], 64))
        tile = synthetic_tile(20 + index, defect=defect, exposure=3, size_hw=size_hw).image
        cv2.imwrite(str(folder / "tile.png"), tile[: size[0], : size[1]])
        expected = magtiles_seg.segment(folder / "tile.png")
        got = page.evaluate(ANSWER, f"tile.png?{index}")
        mask = np.frombuffer(got["mask"].encode(), np.uint8).reshape(size) - ord("0")
        assert np.array_equal(mask, expected.mask), size
        assert got["verdict"] == expected.verdict
        assert got["score"] == pytest.approx(expected.score, abs=1e-4)
        check_rows(got["rows"], expected.defects)
        found += len(expected.defects)
    assert found > 5


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def test_grey_is_pythons_to_the_last_bit(page: Page, folder: Path) -> None:
    rng = np.random.default_rng(5)
    colour = rng.integers(0, 256, (64, 97, 4), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))  # of other colours than sRGB
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (Image.fromarray(colour[..., 0]), {}),
        "colour.png": (Image.fromarray(colour[..., :3]), {}),
        "profile.png": (Image.fromarray(colour[..., :3]), {"icc_profile": profile.tobytes()}),
        "translucent.png": (Image.fromarray(colour), {}),
        "palette.png": (Image.fromarray(colour[..., :3]).quantize(16), {}),
        "bits.png": (Image.fromarray(colour[..., 0]).convert("1"), {}),
        "grey.jpg": (Image.fromarray(colour[..., 0]), {}),
        "colour.bmp": (Image.fromarray(colour[..., :3]), {}),
        "lossless.webp": (Image.fromarray(colour[..., :3]), {"lossless": True}),
        "translucent.webp": (Image.fromarray(colour), {"lossless": True, "exact": True}),
        "turned.jpg": (Image.fromarray(colour[..., :3]), {"exif": exif(6)}),
        "turned.png": (Image.fromarray(colour[..., :3]), {"exif": exif(5)}),
        "upright.webp": (Image.fromarray(colour[..., :3]), {"lossless": True, "exif": exif(1)}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)
        got = page.evaluate(GREY, name)
        grey: NDArray[np.uint8] = np.array(got["grey"], np.uint8)
        assert np.array_equal(grey.reshape(got["height"], -1), read_image(folder / name)), name


def test_what_a_browser_cannot_read_exactly_is_refused_with_the_reason(
    page: Page, folder: Path
) -> None:
    deep = np.full((40, 40), 40_000, np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep)
    Image.fromarray(deep.astype(np.uint8)).save(folder / "tile.tif")
    (folder / "notes.png").write_text("not a picture")
    (folder / "damaged.png").write_bytes((folder / "example.png").read_bytes()[:60])
    colour = Image.fromarray(np.dstack([deep.astype(np.uint8)] * 3))
    for name in ("frames.png", "frames.webp"):
        black = Image.new("RGB", colour.size)
        colour.save(folder / name, save_all=True, append_images=[black])
    colour.save(folder / "turned.webp", exif=exif(3))
    clear = colour.copy()
    clear.putalpha(100)
    clear.save(folder / "turned_clear.png", exif=exif(8))
    for name in ("large.png", "large.bmp", "large.jpg", "large.webp"):
        Image.new("L", (2500, 2000)).save(folder / name)
    head = (folder / "large.png").read_bytes()  # a browser could not decode so many pixels
    (folder / "bomb.png").write_bytes(head[:16] + b"\0\0\x75\x30" * 2 + head[24:])
    for name, reason in {
        "deep.png": "16-bit PNG",
        "tile.tif": "TIFF",
        "notes.png": "expected PNG, JPEG, BMP or WebP",
        "damaged.png": "damaged",
        **{
            f"large.{kind}": "2500 x 2000 px; expected at most 4,000,000"
            for kind in ("png", "bmp", "jpg", "webp")
        },
        "bomb.png": "30000 x 30000 px; expected at most 4,000,000",
        "frames.png": "2 frames; expected a single picture",
        "frames.webp": "2 frames; expected a single picture",
        "turned.webp": "turned by its EXIF data",
        "turned_clear.png": "turned by its EXIF data",
    }.items():
        assert reason in page.evaluate(GREY, name)["error"]
    page.locator("#files").set_input_files(folder / "tile.tif")
    expect(page.locator("#verdict")).to_have_text("not read")
    expect(page.locator("#score")).to_contain_text("browsers do not decode")


def test_sliders_decide_anew_as_redecide_does_and_the_csv_has_pythons_columns(
    browser: Browser, site: Site, folder: Path
) -> None:
    tile = synthetic_tile(22, defect="fray", exposure=3, size_hw=(300, 240)).image
    cv2.imwrite(str(folder / "fray, one.png"), tile)
    page = open_page(browser, site.url)
    page.locator("#files").set_input_files([folder / "fray, one.png", folder / "example.png"])
    expect(page.locator("#pictures option")).to_have_count(2)
    page.locator("#pictures").select_option("0")
    result = magtiles_seg.segment(tile)
    expect(page.locator("#verdict")).to_have_text(result.verdict)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    set_slider(page, "threshold", 0.9)
    set_slider(page, "reject", 0.999)
    other = result.redecide(threshold=0.9, reject_score=0.999)
    assert other.verdict != result.verdict
    expect(page.locator("#verdict")).to_have_text(other.verdict)
    expect(page.locator("#regions tr")).to_have_count(len(other.defects))
    with page.expect_download() as download:
        page.locator("#csv").click()
    text = download.value.path().read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["picture"] == "fray, one.png"]
    check_rows(rows, other.defects)
    assert list(other.defects[0].row()) == list(rows[0])[4:-1]
    assert not [url for url in asked if not url.startswith("blob:")]
    page.context.close()


def test_csv_name_that_begins_as_a_formula_is_text_to_a_spreadsheet(
    browser: Browser, site: Site, folder: Path, tmp_path: Path
) -> None:
    names = ["=1+1.png", "-1.png", "@sum.png", "a=b.png"]
    for name in names:
        shutil.copy(folder / "example.png", tmp_path / name)
    page = open_page(browser, site.url)
    page.locator("#files").set_input_files([tmp_path / name for name in names])
    expect(page.locator("#pictures option")).to_have_count(len(names))
    with page.expect_download() as download:
        page.locator("#csv").click()
    rows = csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8")))
    assert {row["picture"] for row in rows} == {"'=1+1.png", "'-1.png", "'@sum.png", "a=b.png"}
    page.context.close()


def set_slider(page: Page, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def test_page_works_with_the_server_stopped_and_asks_no_other_origin(
    browser: Browser, folder: Path
) -> None:
    site, other = Site(folder), Site(folder)
    page = open_page(browser, site.url)
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    page.evaluate("() => navigator.serviceWorker.ready.then(() => null)")
    refused = page.evaluate(
        f"() => fetch('{other.url}model.json').then(() => '', (error) => error.message)"
    )
    assert "Failed to fetch" in refused  # by the page's policy: the other server is there
    site.stop()
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready.")
    assert page.evaluate("() => crossOriginIsolated")  # and so may use threads
    page.locator("#example").click()
    expect(page.locator("#verdict")).to_have_text("reject")
    assert len(asked) > 5
    assert not [url for url in asked if not url.startswith(site.url)]
    other.stop()
    page.context.close()


def test_pictures_beyond_what_a_page_can_hold_are_left_out_and_counted(
    browser: Browser, site: Site, folder: Path
) -> None:
    script = (folder / "app.js").read_text(encoding="utf-8")
    assert "MOST_PIXELS = 100_000_000" in script
    script = script.replace("100_000_000", "100_000")  # two examples
    page = new_page(browser)
    page.route(
        "**/app.js", lambda route: route.fulfill(body=script, content_type="text/javascript")
    )
    page.goto(site.url)
    for count in (1, 2, 2):
        page.locator("#example").click()
        expect(page.locator("#pictures option")).to_have_count(count)
    expect(page.locator("#status")).to_contain_text("1 left out: at most 500 pictures and 0.1 mil")
    expect(page.locator("#pictures option")).to_have_count(2)
    page.context.close()


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("decide.js", "If nothing follows, reload the page."),
        ("model.json", "The model cannot be loaded: Failed to fetch. Reload the page"),
        ("model.onnx", "The model cannot be loaded: Failed to fetch. Reload the page"),
    ],
)
def test_page_whose_files_do_not_arrive_says_so_and_what_to_do(
    browser: Browser, site: Site, lost: str, told: str
) -> None:
    context = browser.new_context(service_workers="block")  # what a worker fetches is not routed
    page = context.new_page()
    page.route(f"**/{lost}", lambda route: route.abort())
    page.goto(site.url)
    expect(page.locator("#status")).to_contain_text(told, timeout=PATIENCE_MS)
    context.close()


@pytest.mark.parametrize(("screen", "scheme"), [("phone", "dark"), ("laptop", "light")])
def test_page_by_keyboard_opens_the_camera_moves_the_threshold_and_saves_the_csv(
    browser: Browser, site: Site, screen: str, scheme: str
) -> None:
    page = open_page(browser, site.url, screen, scheme)
    keep(page, f"web_first_{screen}")
    tab_to(page, "#camera")
    page.keyboard.press("Enter")
    expect(page.locator("#camera-dialog")).to_be_visible()
    page.wait_for_timeout(1000)
    keep(page, f"web_camera_{screen}")
    tab_to(page, "#take")
    page.keyboard.press("Enter")
    expect(page.locator("#score")).to_contain_text("camera")
    tab_to(page, "#example")
    page.keyboard.press("Enter")
    expect(page.locator("#score")).to_contain_text("example.png")
    keep(page, f"web_answer_{screen}")
    tab_to(page, "#threshold")
    page.keyboard.press("End")
    expect(page.locator("#threshold-value")).to_have_text("0.990")
    tab_to(page, "#csv")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert "example.png,reject" in download.value.path().read_text(encoding="utf-8")
    page.context.close()


def test_dropped_picture_and_chosen_folder_are_listed_with_those_not_read(
    browser: Browser, site: Site, screen: str, tmp_path: Path
) -> None:
    lot = tmp_path / "lot 7"
    lot.mkdir()
    for number, defect in enumerate(("crack", None)):
        tile = synthetic_tile(25, defect=defect, exposure=3).image
        cv2.imwrite(str(lot / f"tile_{number}.png"), tile)
    (lot / "notes.txt").write_text("no picture", encoding="utf-8")
    page = open_page(browser, site.url, screen)
    page.locator("#folder").set_input_files(lot)
    expect(page.locator("#pictures option")).to_have_count(3)
    drop(page, lot / "tile_0.png")
    expect(page.locator("#pictures option")).to_have_count(4)
    drop(page, lot)
    expect(page.locator("#pictures option")).to_have_count(7)
    expect(page.locator("#status")).to_contain_text("2 of 7 not read.")
    page.locator("#pictures").select_option("3")  # the picture that was dropped alone
    expect(page.locator("#verdict")).to_have_text("reject")
    listed = page.locator("#pictures option").all_inner_texts()
    assert sum("not read" in name for name in listed) == 2
    keep(page, f"web_many_{screen}")
    page.context.close()


def drop(page: Page, path: Path) -> None:
    """Let a file or folder fall onto the page, as a file manager does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 100, "data": data})
    session.detach()


def test_built_page_says_what_the_models_card_says(folder: Path) -> None:
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    with magtiles_seg.Segmenter() as segmenter:
        assert about["decision"] == segmenter.decision.to_dict()
        assert about["labels"] == list(segmenter.spec.card.labels)
        assert about["sha256"] == segmenter.spec.sha256
    kept = re.findall(r'"([^"]+)"', (folder / "files.js").read_text(encoding="utf-8"))
    assert all((folder / name).exists() for name in kept if "." in name and " " not in name)
