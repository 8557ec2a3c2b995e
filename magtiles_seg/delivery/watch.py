"""What a live endpoint's metrics say after the deployment: drift, shadow mode, readiness.

It imports the standard library alone and runs as a file: `python3 …/watch.py https://tiles… out.md`
writes what was found and ends with 1, or ends with 0 where nothing was.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

MAX_PSI = 0.2
"""Above it the pictures are another line's than the model was judged on: docs/serve.md."""

MAX_FLIPPED_FRACTION = 0.01
"""Share of mirrored pictures whose verdict may differ between production and the shadow."""

_LEAST = 100  # of fewer mirrored pictures a share says nothing
_TIMEOUT_S = 30.0
_UNREAD = (OSError, ValueError, HTTPException)
_HERE = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:\d+)?", re.IGNORECASE)
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """One thing that a person should see.

    Attributes:
        what: In one sentence.
        advice: What to look at.
    """

    what: str
    advice: str


def watch(url: str) -> list[Finding]:
    """Return what the endpoint's metrics show; empty: all is well.

    Args:
        url: Of the service, without a path.
    """
    url = url.rstrip("/")
    advice = "see the host's log; `magtiles-seg smoke` tests all of it"
    try:
        _get(f"{url}/readyz")
    except _UNREAD as error:
        return [Finding(f"{url} is not ready: {error}", advice)]
    try:
        metrics = _get(f"{url}/metrics")
    except _UNREAD as error:
        return [Finding(f"{url}/metrics cannot be read: {error}", advice)]
    if not _samples(metrics, "magtiles_ready"):
        advice = "is it the address of the service? A page to log in answers everything, too"
        return [Finding(f"{url}/metrics holds no figures of the service", advice)]
    return [*drift(metrics), *shadow(metrics)]


def drift(metrics: str) -> Iterable[Finding]:
    """Give each feature of the pictures that has moved."""
    for labels, value in _samples(metrics, "magtiles_input_psi"):
        if value > MAX_PSI:
            what = f"{labels} of the pictures has moved: stability index {value:.2f} > {MAX_PSI:g}"
            yield Finding(what, "look at late pictures: lamp, lens, dirt, a new kind of tile?")


def shadow(metrics: str) -> Iterable[Finding]:
    """Give the disagreement of production with its shadow, where there is too much."""
    outcomes = dict(_samples(metrics, "magtiles_shadow_requests_total"))
    compared = outcomes.get("compared", 0.0)
    flipped = sum(value for _, value in _samples(metrics, "magtiles_shadow_flipped_total"))
    if compared >= _LEAST and flipped > MAX_FLIPPED_FRACTION * compared:
        what = (
            f"the shadow turned {flipped:.0f} of {compared:.0f} verdicts, more than "
            f"{MAX_FLIPPED_FRACTION:.0%}"
        )
        yield Finding(what, "see the worst cases in MAGTILES_SHADOW_REPORT before promoting it")
    if outcomes.get("failed", 0.0) > max(compared, 1.0):
        yield Finding("most mirrored requests fail", "is the shadow's address right, is it up?")


def as_text(url: str, findings: list[Finding]) -> str:
    """Return the issue's Markdown, without the address: that is a secret, an issue may be public.

    A host's name without a dot stays: it is one of an inner network.
    """
    rows = [f"- **{one.what}** — {one.advice}" for one in findings]
    text = "\n".join(["Found at the live endpoint:", "", *rows, ""])
    host = urllib.parse.urlsplit(url).hostname or ""  # in small letters
    names = [re.escape(url.rstrip("/")), *([re.escape(host)] if "." in host else [])]
    address = re.compile(rf"(?<![\w.-])({'|'.join(names)})(?![\w-])", re.IGNORECASE)
    return address.sub("the endpoint", text)


def _samples(metrics: str, name: str) -> list[tuple[str, float]]:
    """Return the value of each sample of a metric, by the value of its only label."""
    found = [match for match in _SAMPLE.finditer(metrics) if match[1] == name]
    return [((match[2] or "").partition("=")[2].strip('",'), float(match[3])) for match in found]


class DirectHere(urllib.request.ProxyHandler):
    """Asks what runs on this machine itself: the proxy of the environment cannot reach that."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002, ANN401 - as it is called
        """Go by the proxy, but to this machine itself."""
        return None if _HERE.fullmatch(req.host) else super().proxy_open(req, proxy, type)


_OPENER = urllib.request.build_opener(DirectHere)


def _get(url: str) -> str:
    with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
        return str(answer.read().decode())


def main(words: list[str]) -> int:
    """Watch once; 0: all is well, 1: the file says what is not."""
    if len(words) != 2:
        sys.stderr.write("expected URL FILE\n")
        return 2
    url, path = words
    findings = watch(url)
    text = as_text(url, findings)
    if findings:
        Path(path).write_text(text, encoding="utf-8")
    sys.stdout.write(text if findings else f"{url}: nothing to see\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
