from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from magtiles_seg.errors import ConfigError
from magtiles_seg.review.folder import ReviewFolder
from magtiles_seg.serve.settings import Settings


def test_service_keeps_unsure_pictures_and_those_of_a_part_together(
    open_client: Callable[..., TestClient], png: bytes, tmp_path: Path
) -> None:
    client = open_client(
        review_dir=str(tmp_path / "review"),
        review_reasons="review",
        review_score=0.0,
        reject_score=1.0,
        max_files=2,
    )
    files = [("image", png), ("image", png)]
    assert client.post("/analyze?tile=true", files=files).status_code == 200
    assert client.post("/analyze", files={"image": png}).status_code == 200
    assert client.app.state.analyzer.review.flush(20)  # type: ignore[attr-defined]
    kept = ReviewFolder(tmp_path / "review")
    groups = [kept.read(entry.name)[0]["group"] for entry in kept.entries()]
    assert len(groups) == 3
    assert len({group for group in groups if group}) == 1
    assert groups.count(None) == 1
    assert 'magtiles_review_pictures_total{outcome="kept"} 3.0' in client.get("/metrics").text


def test_service_keeps_nothing_unless_asked(client: TestClient) -> None:
    assert client.app.state.analyzer.review is None  # type: ignore[attr-defined]


def test_review_settings_come_from_the_environment_and_are_checked() -> None:
    read = Settings.read(
        {"MAGTILES_REVIEW_DIR": "kept", "MAGTILES_REVIEW_REASONS": "drift, random"}
    )
    assert read.review is not None
    assert read.review.reasons == ("drift", "random")
    assert Settings.read({}).review is None
    with pytest.raises(ConfigError, match=r"review_reasons: .* got 'drfit'; did you mean 'drift'"):
        Settings(review_reasons="drfit")
