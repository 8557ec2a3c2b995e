"""The demo in a real browser."""

from __future__ import annotations

import csv
import io
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Browser, Locator, Page, expect
from screens import NEEDS_CHROMIUM, PATIENCE_MS, keep, new_page, tab_to

from magtiles_seg.dataset.synthetic import synthetic_tile

pytestmark = NEEDS_CHROMIUM

COLLECT_WEB_PICTURES = """() => {
  window.webPictures = new Set();
  const look = () => {
    const image = document.querySelector("#web img");
    if (image && image.src) window.webPictures.add(image.src);
  };
  new MutationObserver(look).observe(
    document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["src"]});
}"""
"""Gathers in the page what the picture of the web has shown."""


WORST_CONTRAST = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : color;
  };
  const ratios = [...document.querySelectorAll("#verdict :is(b, i, span, .doubt)")].map((node) => {
    const [one, other] = [light(getComputedStyle(node).color), light(ground(node))];
    return Math.max(one, other) / Math.min(one, other);
  });
  return Math.min(...ratios);
}"""
"""Returns the least contrast of words of the verdict with what lies behind them."""


DEMO = "import sys; from magtiles_seg.cli import main; sys.exit(main())"
SLOWLY = """
import time
from magtiles_seg.demo import tile as module
quick = module.Judge.segment
def segment(self, path, model=None):
    time.sleep(3)
    return quick(self, path, model)
module.Judge.segment = segment
"""


@contextmanager
def demo(code: str = DEMO) -> Iterator[str]:
    """`magtiles-seg demo` as a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", code, "demo", "--port", str(port)])
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with demo() as url:
        yield url


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def open_page(browser: Browser, address: str, screen: str = "laptop") -> Page:
    page = new_page(browser, screen)
    page.goto(address)
    expect(page.locator("#verdict b")).to_be_visible()
    return page


def white_px(page: Page, mask: Locator) -> int:
    content = page.request.get(str(mask.get_attribute("src"))).body()
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    return int(np.count_nonzero(picture))


def test_page_at_first_sight_shows_an_answer_and_asks_no_other_host(
    browser: Browser, address: str, screen: str
) -> None:
    page = new_page(browser, screen)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.locator("#verdict b")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#overlay img").first).to_be_visible()
    expect(page.get_by_role("tab")).to_have_text(["One tile", "Many tiles", "Line scan"])
    keep(page, f"demo_first_{screen}")
    foreign = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked
    assert not foreign
    page.close()


def test_upload_brings_overlay_and_table_and_the_slider_changes_the_mask(
    browser: Browser, address: str, screen: str, tmp_path: Path
) -> None:
    path = tmp_path / "tile.png"
    cv2.imwrite(str(path), synthetic_tile(22, defect="fray", exposure=3, size_hw=(300, 240)).image)
    page = open_page(browser, address, screen)
    mask = page.locator("#mask img")
    before, overlay = white_px(page, mask), page.locator("#overlay img").last.get_attribute("src")
    page.locator("#picture button[aria-label='Remove Image']").click()
    expect(page.locator("#verdict")).to_contain_text("Waiting")
    page.locator("#picture input[type=file]").set_input_files(path)
    expect(page.locator("#defects tbody tr")).not_to_have_count(0)
    expect(page.locator("#overlay img").last).not_to_have_attribute("src", str(overlay))
    uploaded, shown = white_px(page, mask), str(mask.get_attribute("src"))
    assert uploaded > before  # a fray is larger than the example's crack
    keep(page, f"demo_upload_{screen}")
    page.locator("#threshold input[type=number]").fill("0.97")
    page.locator("#threshold input[type=number]").press("Enter")
    expect(mask).not_to_have_attribute("src", shown)
    assert white_px(page, mask) < uploaded
    page.locator("#reject-score input[type=number]").fill("0.999")
    page.locator("#reject-score input[type=number]").press("Enter")
    expect(page.locator("#verdict")).to_contain_text("the reject score 0.999")
    keep(page, f"demo_slider_{screen}")
    page.get_by_label("Scale in mm per pixel").fill("1e300")
    expect(page.locator(".toast-body")).to_contain_text("expected a positive number of mm")
    page.close()


def test_example_is_taken_by_a_click(browser: Browser, address: str) -> None:
    page = open_page(browser, address)
    page.locator("#examples .thumbnail-item").last.click()
    expect(page.locator("#verdict b")).to_have_text("Accept")
    keep(page, "demo_accepted_laptop")
    page.close()


def test_bad_upload_gets_a_message_and_no_result(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    page = open_page(browser, address)
    page.locator("#picture button[aria-label='Remove Image']").click()
    expect(page.locator("#verdict")).to_contain_text("Waiting")
    page.locator("#picture input[type=file]").set_input_files(path)
    expect(page.locator("#verdict")).to_contain_text("The file is no picture in a format that")
    expect(page.locator("#defects tbody tr")).to_have_count(0)
    expect(page.locator("#picture img")).to_have_count(0)
    keep(page, "demo_bad_laptop")
    page.close()


def test_bad_upload_after_a_good_one_gets_the_same_message(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    good, bad = tmp_path / "tile.png", tmp_path / "notes.png"
    cv2.imwrite(str(good), synthetic_tile(22, defect="fray", exposure=3).image)
    bad.write_text("not a picture", encoding="utf-8")
    page = open_page(browser, address)
    remove = page.locator("#picture button[aria-label='Remove Image']")
    for path, said in (
        (good, "the reject score"),
        (bad, "The file is no picture"),
        (good, "Score"),
    ):
        if remove.count():
            remove.click()
            expect(page.locator("#verdict")).to_contain_text("Waiting")
        page.locator("#picture input[type=file]").set_input_files(path)
        expect(page.locator("#verdict")).to_contain_text(said)
    page.close()


def test_picture_given_before_the_answer_to_the_last_gets_its_own(
    browser: Browser, tmp_path: Path
) -> None:
    good, bad = tmp_path / "tile.png", tmp_path / "notes.png"
    cv2.imwrite(str(good), synthetic_tile(22, defect="fray", exposure=3).image)
    bad.write_text("not a picture", encoding="utf-8")
    with demo(SLOWLY + DEMO) as url:
        page = open_page(browser, url)
        page.locator("#picture button[aria-label='Remove Image']").click()
        expect(page.locator("#verdict")).to_contain_text("Waiting")
        for path in (good, bad):
            page.locator("#picture input[type=file]").set_input_files(path)
            page.wait_for_timeout(1000)
        page.wait_for_timeout(7000)
        expect(page.locator("#verdict")).to_contain_text("The file is no picture")
        page.locator("#picture input[type=file]").set_input_files(good)
        page.wait_for_timeout(1000)
        page.locator("#picture button[aria-label='Remove Image']").click()
        page.wait_for_timeout(7000)
        expect(page.locator("#verdict")).to_contain_text("Waiting")
        page.close()


@pytest.mark.parametrize("first", ["tile.tif", "notes.png"])
def test_picture_given_while_the_answer_will_show_another_is_the_one_that_stays(
    browser: Browser, tmp_path: Path, first: str
) -> None:
    cv2.imwrite(str(tmp_path / "tile.tif"), synthetic_tile(22, defect="fray", exposure=3).image)
    cv2.imwrite(str(tmp_path / "sound.png"), synthetic_tile(24, exposure=3).image)
    (tmp_path / "notes.png").write_text("not a picture", encoding="utf-8")
    with demo(SLOWLY + DEMO) as url:
        page = open_page(browser, url)
        page.locator("#picture button[aria-label='Remove Image']").click()
        expect(page.locator("#verdict")).to_contain_text("Waiting")
        for name in (first, "sound.png"):
            page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
            page.wait_for_timeout(1000)
        page.wait_for_timeout(7000)
        expect(page.locator("#verdict b")).to_have_text("Accept")
        expect(page.locator("#picture img")).to_have_attribute("src", re.compile(r"/sound\.png$"))
        page.close()


def test_what_is_asked_while_a_picture_is_inspected_is_answered_after_it(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "tile.png"
    cv2.imwrite(str(path), synthetic_tile(22, defect="fray", exposure=3).image)
    with demo(SLOWLY + DEMO) as url:
        page = open_page(browser, url)
        verdict, given = page.locator("#verdict"), page.locator("#picture img")

        def give() -> None:
            page.locator("#picture button[aria-label='Remove Image']").click()
            expect(verdict).to_contain_text("Waiting")
            page.locator("#picture input[type=file]").set_input_files(path)
            page.wait_for_timeout(1000)

        give()
        page.locator("#examples .thumbnail-item").nth(1).click()
        page.locator("#examples .thumbnail-item").last.click()
        page.wait_for_timeout(5000)
        expect(verdict.locator("b")).to_have_text("Accept")
        expect(given).to_have_attribute("src", re.compile(r"/image\.png$"))
        give()
        score = page.locator("#reject-score input[type=number]")
        score.fill("0.999")
        score.press("Enter")
        page.wait_for_timeout(5000)
        expect(verdict).to_contain_text("the reject score 0.999")
        expect(given).to_have_attribute("src", re.compile(r"/tile\.png$"))
        give()
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option").last.click()
        page.wait_for_timeout(5000)
        expect(page.locator("#model")).to_contain_text("magnetic-tile-nano")
        expect(score).not_to_have_value("0.999")
        page.close()


def test_picture_whose_upload_takes_long_is_not_lost_to_the_answer_before_it(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "noise.bmp"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (800, 700)).astype(np.uint8))
    page = open_page(browser, address)
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    session.send("Network.emulateNetworkConditions", slow)
    page.locator("#picture button[aria-label='Remove Image']").click()
    page.locator("#picture input[type=file]").set_input_files(path)
    expect(page.locator("#verdict")).to_contain_text("Waiting")
    expect(page.locator("#picture img")).to_have_attribute(
        "src", re.compile(r"/noise\.bmp$"), timeout=15_000
    )
    expect(page.locator(".doubt")).to_contain_text("Is this a tile?")
    page.close()


def drop(page: Page, selector: str, *paths: Path, text: str = "") -> None:
    """Drop files or folders on an element, as a file manager does, or a text."""
    box = page.locator(selector).bounding_box()
    assert box
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    items = [{"mimeType": "text/plain", "data": text}] if text else []
    data = {"items": items, "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})


def test_picture_dropped_on_the_one_that_is_shown_takes_its_place(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "sound.png"
    cv2.imwrite(str(path), synthetic_tile(24, exposure=3).image)
    page = open_page(browser, address)
    expect(page.locator("#picture img")).to_be_visible()
    drop(page, "#picture", path)
    expect(page.locator("#picture img")).to_have_attribute("src", re.compile(r"/sound\.png$"))
    expect(page.locator("#verdict b")).to_have_text("Accept")
    page.close()


@pytest.mark.parametrize("what", ["folder", "text"])
def test_picture_stays_when_what_is_no_file_is_dropped_on_it(
    browser: Browser, address: str, tmp_path: Path, what: str
) -> None:
    page = open_page(browser, address)
    expect(page.locator("#picture img")).to_be_visible()
    verdict = page.locator("#verdict").inner_text()
    if what == "folder":
        drop(page, "#picture", tmp_path)
        expect(page.get_by_text("Invalid file type")).to_be_visible()
    else:
        drop(page, "#picture", text="https://example.invalid/tile.png")
    page.wait_for_timeout(1000)
    expect(page.locator("#picture img")).to_be_visible()
    assert page.locator("#verdict").inner_text() == verdict
    page.close()


def test_picture_dropped_beside_the_areas_leaves_the_page_as_it_is(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "sound.png"
    cv2.imwrite(str(path), synthetic_tile(24, exposure=3).image)
    page = open_page(browser, address)
    before = page.url
    drop(page, "#verdict", path)
    page.wait_for_timeout(1000)
    assert [one.url for one in page.context.pages] == [before]
    page.close()


def test_folder_dropped_on_many_tiles_gives_all_files_in_it_and_a_file_joins_them(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "shots"
    (folder / "below").mkdir(parents=True)
    for name in ("one.png", "below/two.png", ".hidden.png"):
        cv2.imwrite(str(folder / name), synthetic_tile(24, exposure=3, size_hw=(120, 100)).image)
    page = open_page(browser, address)
    page.get_by_role("tab", name="Many tiles").click()
    drop(page, "#many", folder)
    _expect_answers_of(page, {"one.png", "two.png"})
    (tmp_path / "three.png").write_bytes((folder / "one.png").read_bytes())
    drop(page, "#many", tmp_path / "three.png")  # on the list that is shown
    _expect_answers_of(page, {"one.png", "two.png", "three.png"})
    page.close()


def test_click_on_a_row_frames_its_region_on_the_picture(
    browser: Browser, address: str, screen: str
) -> None:
    page = open_page(browser, address, screen)
    row = page.locator("#defects tbody tr").first
    frame, picture = page.locator("#region"), page.locator("#overlay img").first
    expect(picture).to_be_visible()
    page.wait_for_timeout(1000)
    unframed = page.locator("#overlay").screenshot()
    row.click()
    expect(frame).to_be_visible()
    page.mouse.move(0, 0)
    assert page.locator("#overlay").screenshot() != unframed  # it may lie behind the picture
    keep(page, f"demo_region_{screen}")
    inner, outer = frame.bounding_box(), picture.bounding_box()
    assert inner
    assert outer
    assert outer["x"] - 8 <= inner["x"]
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 8
    page.locator("#examples .thumbnail-item").nth(1).click()
    expect(frame).to_have_count(0)
    page.close()


def test_noise_raises_the_question_whether_it_is_a_tile(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (200, 240)).astype(np.uint8))
    page = open_page(browser, address, "phone")
    page.locator("#picture button[aria-label='Remove Image']").click()
    expect(page.locator("#verdict")).to_contain_text("Waiting")
    page.locator("#picture input[type=file]").set_input_files(path)
    expect(page.locator(".doubt")).to_contain_text("Is this a tile?")
    keep(page, "demo_noise_phone")
    page.close()


def test_words_of_the_answer_can_be_read_in_the_dark(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (200, 240)).astype(np.uint8))
    page = new_page(browser, scheme="dark")
    page.goto(address)
    page.locator("#picture button[aria-label='Remove Image']").click()
    expect(page.locator("#verdict")).to_contain_text("Waiting")
    assert page.evaluate(WORST_CONTRAST) >= 4.5  # WCAG 2.2, AA
    page.locator("#picture input[type=file]").set_input_files(path)
    expect(page.locator(".doubt")).to_contain_text("Is this a tile?")
    assert page.evaluate(WORST_CONTRAST) >= 4.5
    page.close()


def test_many_files_are_listed_and_their_csv_downloads(
    browser: Browser, address: str, screen: str, tmp_path: Path
) -> None:
    for index, defect in enumerate(("fray", "uneven", None)):
        tile = synthetic_tile(22, defect=defect, exposure=3, size_hw=(120, 100))
        cv2.imwrite(str(tmp_path / f"tile_{index}.png"), tile.image)
    (tmp_path / "notes.txt").write_text("not a picture")
    page = open_page(browser, address, screen)
    page.get_by_role("tab", name="Many tiles").click()
    page.locator("#many input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
    button = page.locator("#csv")
    expect(page.locator("#answers tbody tr")).to_have_count(4)
    expect(button).to_be_enabled()
    with page.expect_download() as download:
        button.click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    names = {"notes.txt", "tile_0.png", "tile_1.png", "tile_2.png"}
    assert {row["picture"] for row in rows} == names
    assert [row["picture"] for row in rows if row["verdict"] == "not read"] == ["notes.txt"]
    keep(page, f"demo_many_{screen}")
    page.locator("#sample").click()
    expect(page.locator("#answers tbody tr")).to_have_count(12)
    expect(page.locator("#many")).not_to_contain_text("notes.txt")
    page.close()


def test_several_exposures_of_one_tile_get_one_verdict(
    browser: Browser, address: str, screen: str, tmp_path: Path
) -> None:
    for light in (2, 3, 4):
        tile = synthetic_tile(22, defect="fray", exposure=light, size_hw=(300, 240))
        cv2.imwrite(str(tmp_path / f"p7_light{light}.png"), tile.image)
    page = open_page(browser, address, screen)
    page.get_by_role("tab", name="Many tiles").click()
    page.locator("#many input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
    expect(page.locator("#answers tbody tr")).to_have_count(3)
    page.get_by_label("All of them show one tile").check()
    expect(page.locator("#counts .verdict")).to_contain_text("One tile, 3 pictures")
    expect(page.locator("#counts .verdict b")).to_have_text("Reject")
    keep(page, f"demo_exposures_{screen}")
    page.close()


def test_long_names_leave_the_pictures_on_the_screen(
    browser: Browser, address: str, screen: str, tmp_path: Path
) -> None:
    tile = synthetic_tile(22, defect="fray", exposure=3, size_hw=(300, 240))
    path = tmp_path / f"{'Oberflächenprüfungsaufnahme' * 4}.png"
    path.write_bytes(cv2.imencode(".png", tile.image)[1].tobytes())
    page = open_page(browser, address, screen)
    page.get_by_role("tab", name="Many tiles").click()
    page.locator("#many input[type=file]").set_input_files(path)
    drawn = page.locator("#drawn img").first
    expect(drawn).to_be_visible()
    frame, box = page.locator("#drawn").bounding_box(), drawn.bounding_box()
    assert frame
    assert box
    assert box["x"] + box["width"] <= frame["x"] + frame["width"]
    page.close()


def test_what_is_asked_while_many_tiles_are_inspected_is_not_lost(
    browser: Browser, tmp_path: Path
) -> None:
    for light in (2, 3):
        tile = synthetic_tile(22, defect="fray", exposure=light, size_hw=(300, 240))
        cv2.imwrite(str(tmp_path / f"p7_light{light}.png"), tile.image)
    with demo(SLOWLY + DEMO) as url:
        page = open_page(browser, url)
        page.get_by_role("tab", name="Many tiles").click()
        page.locator("#many input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
        page.wait_for_timeout(1500)
        page.get_by_label("All of them show one tile").check()
        expect(page.locator("#counts .verdict")).to_contain_text("One tile, 2 pictures")
        page.close()


def test_last_of_files_and_synthetic_tiles_asked_one_during_the_other_is_answered_alone(
    browser: Browser, tmp_path: Path
) -> None:
    for name in ("one.png", "two.png"):
        tile = synthetic_tile(22, defect="fray", exposure=3, size_hw=(300, 240))
        cv2.imwrite(str(tmp_path / name), tile.image)
    with demo(SLOWLY.replace("sleep(3)", "sleep(0.4)") + DEMO) as url:
        page = open_page(browser, url)
        page.get_by_role("tab", name="Many tiles").click()
        page.locator("#sample").click()
        expect(page.locator("#answers")).to_contain_text("tile_01.png")
        page.locator("#many input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
        expect(page.locator("#answers")).to_contain_text("two.png")
        _expect_answers_of(page, {"one.png", "two.png"})
        page.get_by_label("All of them show one tile").check()  # asks for the same files anew
        expect(page.locator("#counts .verdict")).to_contain_text("One tile, 2 pictures")
        page.get_by_label("All of them show one tile").uncheck()
        page.locator("#sample").click()
        expect(page.locator("#answers")).to_contain_text("tile_12.png")
        _expect_answers_of(page, {f"tile_{number:02}.png" for number in range(1, 13)})
        page.close()


def _expect_answers_of(page: Page, names: set[str]) -> None:
    """See that table and CSV of the second tab are of these pictures, and stay so."""
    button = page.locator("#csv")
    expect(button).to_be_enabled()
    page.wait_for_timeout(2000)
    expect(button).to_be_enabled()
    assert set(page.locator("#answers tbody .name").all_inner_texts()) == names
    with page.expect_download() as download:
        button.click()
    rows = csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8")))
    assert {row["picture"] for row in rows} == names


def test_sliders_stay_where_they_are_when_the_focus_passes_the_list_of_models(
    browser: Browser, address: str
) -> None:
    page = open_page(browser, address)
    threshold = page.locator("#threshold input[type=number]")
    threshold.fill("0.999")
    threshold.press("Enter")
    expect(page.locator("#defects")).to_contain_text("No region above the threshold")
    page.get_by_label("Model", exact=True).focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(2000)
    expect(threshold).to_have_value("0.999")
    expect(page.locator("#defects")).to_contain_text("No region above the threshold")
    page.close()


def test_first_tab_by_keyboard_takes_an_example_moves_the_threshold_and_frames_a_region(
    browser: Browser, address: str, screen: str
) -> None:
    page = open_page(browser, address, screen)
    expect(page.locator("#overlay img").first).to_be_visible()
    tab_to(page, "#examples button[aria-label='Thumbnail 4 of 6']")
    page.keyboard.press("Enter")
    expect(page.locator("#defects tbody")).to_contain_text("fray")
    line = page.locator("#overlay [data-testid=slider]")
    tab_to(page, "#overlay [data-testid=slider]")
    page.keyboard.press("Home")
    expect(line).to_have_attribute("aria-valuenow", re.compile(r"^\d+$"))
    begin = line.bounding_box()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    moved = line.bounding_box()
    page.keyboard.press("End")
    page.wait_for_timeout(500)
    end = line.bounding_box()
    assert begin
    assert moved
    assert end
    assert begin["x"] + 5 < moved["x"] < end["x"]
    tab_to(page, "#threshold input[type=range]")
    page.keyboard.press("End")
    expect(page.locator("#defects")).to_contain_text("No region above the threshold")
    page.keyboard.press("Shift+Tab")  # Reset to default value
    page.keyboard.press("Enter")
    expect(page.locator("#defects tbody")).to_contain_text("fray")
    tab_to(page, "#defects tr[data-box]")
    page.keyboard.press("Enter")
    expect(page.locator("#region")).to_be_visible()
    keep(page, f"demo_keyboard_{screen}")
    page.close()


def test_other_tabs_by_keyboard_inspect_twelve_tiles_and_let_a_web_pass(
    browser: Browser, address: str, screen: str
) -> None:
    page = open_page(browser, address, screen)
    page.get_by_role("tab", name="Many tiles").focus()
    page.keyboard.press("Enter")
    tab_to(page, "#sample")
    page.keyboard.press("Enter")
    expect(page.locator("#answers .pill")).to_have_count(12)
    said = page.locator("#answers .pill").all_inner_texts()
    drawn = ["Accept", "Reject"] * 6
    assert sum(one == other for one, other in zip(said, drawn, strict=True)) >= 11
    keep(page, f"demo_twelve_{screen}")
    page.get_by_role("tab", name="Line scan").focus()
    page.keyboard.press("Enter")
    tab_to(page, "#start")
    page.keyboard.press("Enter")
    expect(page.locator("#web-defects tbody tr")).not_to_have_count(0)
    tab_to(page, "#stop")
    page.keyboard.press("Enter")
    page.close()


def test_web_grows_and_its_defects_are_listed(browser: Browser, address: str, screen: str) -> None:
    page = open_page(browser, address, screen)
    page.get_by_role("tab", name="Line scan").click()
    page.evaluate(COLLECT_WEB_PICTURES)  # from before the start: a fast web may end at any moment
    page.locator("#start").click()
    expect(page.locator("#web-defects tbody tr")).not_to_have_count(0)
    page.wait_for_function("() => window.webPictures.size > 1")
    page.locator("#stop").click()
    page.wait_for_timeout(1500)
    keep(page, f"demo_web_{screen}")
    page.close()
