"""The smoke test: does a live endpoint serve this model, and does the model see a plain defect?"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic import SyntheticTile, synthetic_tile
from magtiles_seg.delivery.watch import DirectHere
from magtiles_seg.errors import ConfigError, DeliveryError

_GOLDEN_SEED, _GOLDEN_DEFECT = 0, "fray"
"""A large, plain defect: any model worth serving finds most of it."""

_MAX_DIFFERENT_FRACTION = 1e-3
"""Pixels in which the endpoint may differ from the same file here: other machines round so."""

_REQUEST_TIMEOUT_S = 30.0
_SWAPPING = (200, 429, 502, 503, 504)
"""What comes while one release takes the other's place, or many ask: it may be another soon."""
_URL = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/[!-~]*)?", re.IGNORECASE)
_KEY = re.compile(r"[!-~]*")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the endpoint must answer.

    Attributes:
        model: The file that it serves; None: any.
        sha256: Of the model that it serves; None: any, or that of `model`.
        version: The version that it names; None: any.
        min_iou: Least IoU on the golden tile.
        ready_s: How long it may take to become ready, and to serve the model that is expected:
            some hosts let the former release answer until the new one can.
        api_key: Key of the endpoint, where it wants one; white space around it is dropped, as a
            secret that was read from a file ends in a new line.

    Raises:
        ConfigError: A value is invalid.
    """

    model: Path | None = None
    sha256: str | None = None
    version: str | None = None
    min_iou: float = 0.5
    ready_s: float = 120.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check what an endpoint's answer is held against."""
        if not 0 <= self.min_iou <= 1:
            raise ConfigError(f"the least IoU: expected 0 to 1, got {self.min_iou:g}")
        if not self.ready_s >= 0:
            raise ConfigError(f"the wait for /readyz: expected 0 s or more, got {self.ready_s:g}")
        key = (self.api_key or "").strip() or None
        if key is not None and not _KEY.fullmatch(key):
            raise ConfigError("the key of the endpoint: expected ASCII letters without a space")
        object.__setattr__(self, "api_key", key)


@dataclass(frozen=True, kw_only=True)
class SmokeReport:
    """What a passed test found.

    Attributes:
        url: Of the endpoint.
        model: Name of the served model, from its headers.
        sha256: Of the served model file, from its headers.
        version: Of the model, from its headers; empty where the endpoint names none.
        iou: On the golden tile.
        latency_ms: Of that request, over the network.
    """

    url: str
    model: str
    sha256: str
    version: str
    iou: float
    latency_ms: float

    def __str__(self) -> str:
        """Return one line."""
        version = f" {self.version}" if self.version else ""
        return (
            f"{self.url}: serves {self.model}{version} (SHA-256 {self.sha256[:12]}…), golden tile "
            f"IoU {self.iou:.3f}, {self.latency_ms:.0f} ms"
        )


def smoke(url: str, expected: Expectation) -> SmokeReport:
    """Wait until an endpoint is ready, and let it analyze the golden tile.

    Args:
        url: Of the service, such as `https://tiles-dev.example.org`.
        expected: What it must answer.

    Raises:
        ConfigError: The address is none.
        DeliveryError: It does not become ready, serves another model, or answers wrongly.
    """
    url, tile = _address(url), golden_tile()
    headers, body, latency_ms = _settled(url, tile, expected)
    mask = _mask(url, body, tile.image.shape)
    if expected.model is not None:
        _check_same(url, mask, _local_mask(expected.model, tile))
    return SmokeReport(
        url=url,
        model=headers.get("x-model-name", ""),
        sha256=headers.get("x-model-sha256", ""),
        version=headers.get("x-model-version", ""),
        iou=_check_golden(url, mask, tile, expected.min_iou),
        latency_ms=latency_ms,
    )


def _settled(
    url: str, tile: SyntheticTile, expected: Expectation
) -> tuple[Mapping[str, str], bytes, float]:
    """Return headers, body and time in ms of the first answer by the expected model."""
    end = time.monotonic() + expected.ready_s
    await_ready(url, expected.ready_s)
    while True:
        start = time.perf_counter()
        try:
            status, headers, body = _analyze(url, tile, expected.api_key)
            said = f"{url}/analyze answered {status}, expected 200: {_short(body)}"
        except _UnreachedError as error:
            status, headers, body, said = 503, {}, b"", str(error)
        latency_ms = (time.perf_counter() - start) * 1e3
        if status == 200:
            other = _other_model(headers, expected)
            if not other:
                return headers, body, latency_ms
            said = f"{url} serves another model: {other}"
        if status not in _SWAPPING or time.monotonic() >= end:
            raise DeliveryError(said)
        time.sleep(_pause_s(expected.ready_s))


def served_model(url: str, api_key: str | None) -> str | None:
    """Return the SHA-256 of the model that an endpoint serves now; None where it cannot tell.

    Raises:
        ConfigError: The address is none.
    """
    url = _address(url)
    try:
        status, headers, _ = _analyze(url, golden_tile(), api_key)
    except DeliveryError:
        return None
    return headers.get("x-model-sha256") or None if status == 200 else None


def _address(url: str) -> str:
    if not _URL.fullmatch(url.rstrip("/")):
        raise ConfigError(f"expected an address such as https://tiles.example.org, got {url!r}")
    return url.rstrip("/")


def golden_tile() -> SyntheticTile:
    """Return the tile that is asked for: always the same."""
    return synthetic_tile(_GOLDEN_SEED, defect=_GOLDEN_DEFECT)


def await_ready(url: str, seconds: float) -> None:
    """Wait until `/readyz` answers 200.

    Raises:
        DeliveryError: It does not within this time; the message has the last answer.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            status, _, body = _request(urllib.request.Request(f"{url}/readyz"))
            if status == 200:
                return
            said = f"{status} {_short(body)}"
        except DeliveryError as error:
            said = str(error)
        if time.monotonic() >= end:
            raise DeliveryError(f"{url}/readyz is not ready after {seconds:g} s; last: {said}")
        time.sleep(_pause_s(seconds))


def _pause_s(seconds: float) -> float:
    return min(1.0, seconds / 20)


def _analyze(
    url: str, tile: SyntheticTile, api_key: str | None
) -> tuple[int, Mapping[str, str], bytes]:
    boundary = uuid.uuid4().hex
    _, png = cv2.imencode(".png", tile.image)
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="golden.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode() + png.tobytes()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if api_key:
        headers["X-API-Key"] = api_key
    content = body + f"\r\n--{boundary}--\r\n".encode()
    return _request(urllib.request.Request(f"{url}/analyze", data=content, headers=headers))


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would take the key to another host, and turn POST into GET."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: object,  # noqa: ARG002
        code: int,
        msg: str,  # noqa: ARG002
        headers: object,  # noqa: ARG002
        newurl: str,
    ) -> NoReturn:
        """Name the address in place of going there.

        Raises:
            DeliveryError: Always.
        """
        raise DeliveryError(
            f"{req.full_url} answered {code}, which leads to {newurl}; give that address, without "
            "/readyz or /analyze, if it is the service's own"
        )


_OPENER = urllib.request.build_opener(_Stay, DirectHere)


class _UnreachedError(DeliveryError):
    """Nothing answers, or not to the end."""


def _request(request: urllib.request.Request) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers by small-letter name, and body."""
    try:
        with _OPENER.open(request, timeout=_REQUEST_TIMEOUT_S) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, _read(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}, error.read()
    except (OSError, HTTPException) as error:
        raise _UnreachedError(f"{request.full_url} cannot be reached: {error}") from error


def _read(answer: HTTPResponse) -> bytes:
    """Return the body; of one that drips on for ever each byte comes in time, but not the end."""
    end, parts = time.monotonic() + _REQUEST_TIMEOUT_S, []
    while part := answer.read1():
        parts.append(part)
        if time.monotonic() >= end:
            raise TimeoutError(f"its answer does not end within {_REQUEST_TIMEOUT_S:g} s")
    if answer.length:
        raise IncompleteRead(b"", answer.length)
    return b"".join(parts)


def _mask(url: str, body: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        content: Any = json.loads(body)["pred"]
        mask = np.array(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DeliveryError(
            f'{url}/analyze did not answer {{"pred": [[0, 1, …], …]}}: {_short(body)}'
        ) from error
    if mask.shape != shape or not np.isin(mask, (0, 1)).all():
        raise DeliveryError(
            f"{url}/analyze answered a mask of shape {mask.shape}; expected zeros and ones of the "
            f"picture's shape {shape}"
        )
    return mask.astype(np.uint8)


def _other_model(headers: Mapping[str, str], expected: Expectation) -> str:
    """Return in what an answer names another model or version; empty where it is the expected."""
    wanted = {}
    if expected.sha256 is not None:
        wanted["x-model-sha256"] = expected.sha256
    if expected.model is not None:
        from magtiles_seg.infer.backends.base import file_sha256

        wanted["x-model-sha256"] = file_sha256(expected.model)
    if expected.version is not None:
        wanted["x-model-version"] = expected.version
    for name, value in wanted.items():
        if headers.get(name) != value:
            return f"{name} is {headers.get(name)!r}, expected {value!r}"
    return ""


def _local_mask(model: Path, tile: SyntheticTile) -> NDArray[np.uint8]:
    from magtiles_seg.infer.segmenter import Segmenter

    with Segmenter(model) as segmenter:
        return segmenter(tile.image).mask


def _check_same(url: str, mask: NDArray[np.uint8], local: NDArray[np.uint8]) -> None:
    different = float((mask != local).mean())
    if different > _MAX_DIFFERENT_FRACTION:
        raise DeliveryError(
            f"{url} answers otherwise than the same file here: {different:.2%} of the golden "
            f"tile's pixels, expected at most {_MAX_DIFFERENT_FRACTION:.2%}"
        )


def _check_golden(url: str, mask: NDArray[np.uint8], tile: SyntheticTile, least: float) -> float:
    found, truth = mask > 0, tile.mask > 0
    iou = float((found & truth).sum() / max(1, (found | truth).sum()))
    if iou < least:
        raise DeliveryError(
            f"{url} does not see the golden tile's defect: IoU {iou:.3f}, expected >= {least:g}"
        )
    return iou


def _short(body: bytes) -> str:
    return body[:200].decode(errors="replace")
