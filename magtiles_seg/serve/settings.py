"""How the service is configured: defaults, then `MAGTILES_…` in the environment, then flags."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from magtiles_seg.config import check_fields, nearest, raise_if_any, within
from magtiles_seg.errors import ConfigError
from magtiles_seg.review.settings import REASONS, ReviewSettings, reasons_of

PREFIX = "MAGTILES_"
"""Before the name of each setting in the environment, in capitals: `MAGTILES_PORT`."""

ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~-]+)+", re.ASCII)
"""What a root path looks like: `/line3`, `/plant/line3`."""

SECRET = "shadow_api_key"
"""The setting that is a secret: it comes from the environment, which others cannot list."""

_URL = re.compile(r"https?://([^\s/?#@]*@)?([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?([/?]\S*)?", re.I)
_KUBERNETES = "tcp://"  # how it names the port of a Service called `magtiles`, in MAGTILES_PORT
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"\*|null|https?://([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII)
_FOREIGN = {"MAGTILES_CONFIG", "MAGTILES_DATA"}  # read by other parts of the project
_CORES_PER_WORKER = 8
_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service does and does not do. Making one checks every value.

    Attributes:
        host: Address to listen on; `0.0.0.0` for all.
        port: Port to listen on.
        workers: Processes; 0: one for every eight cores, one on a GPU.
        threads: CPU threads of one inference; 0: one, and as many inferences at once as cores.
        model: A model file; None: the bundled model.
        model_version: What people call this state of it; answers name it.
        device: `cpu`, `cuda`, `cuda:N` or `tensorrt`; None: the CPU, an engine's is a GPU.
        threshold: A pixel of at least this probability is defect; None: as the model says.
        min_area_px: Smaller defects are dropped; None: as the model says.
        reject_score: A picture of at least this score is rejected; None: as the model says.
        review_score: From this score on a picture wants review; None: as the model says.
        mm_per_px: Scale of the pictures, for sizes in mm; None: unknown.
        max_batch: Most pictures in one inference; 0: one on a CPU, 16 on a GPU.
        batch_wait_ms: How long a picture may wait for others of its size.
        max_in_flight: Requests inside a worker; the next one gets 503.
        timeout_s: Longest time from a whole upload to its answer; then 503.
        read_timeout_s: Longest time for an upload to arrive; then 408.
        drain_s: After SIGTERM, how long idle connections may still bring a request; at most half of
            `stop_s`.
        stop_s: Longest time from SIGTERM to the end. No queue is let grow beyond it.
        max_body_mb: Largest request body, in MB of 1,000,000 bytes.
        max_pixels: Largest picture, checked before it is decoded.
        max_files: Pictures in one request.
        formats: Picture formats that are taken, a comma between.
        api_keys: `name:sha256` pairs, a comma between; None: anyone may ask.
        cors_origins: Origins whose pages may call the service, a comma between; None: none.
        root_path: What a proxy puts in front of every path, such as `/line3`; None: nothing, or
            what it says in `X-Forwarded-Prefix`.
        demo: Whether to mount the browser demo, which asks for no key and for one process.
        shadow_url: Address of another `/analyze` that gets a share of the requests; None: off.
        shadow_fraction: That share.
        shadow_report: Directory for the report of the worst disagreements; None: no report.
        shadow_api_key: What the shadow is asked with, as `X-API-Key`; None: it asks for none.
        drift_window: Pictures in the running input statistics.
        review_dir: Folder that keeps what a person should look at; None: nothing is kept.
        review_reasons: Why: of review, disagreement, drift and random, a comma between.
        review_share: Share of the pictures that is kept at random.
        review_pictures: Most pictures that are kept.
        review_mb: Most MB of 1,000,000 bytes.
    """

    host: str = "127.0.0.1"
    port: int = within(8000, 0, 65535)
    workers: int = within(0, 0)
    threads: int = within(0, 0)
    model: str | None = None
    model_version: str | None = None
    device: str | None = None
    threshold: float | None = within(None, 0, 1)
    min_area_px: int | None = within(None, 1)
    reject_score: float | None = within(None, 0, 1)
    review_score: float | None = within(None, 0, 1)
    mm_per_px: float | None = within(None, 0)
    max_batch: int = within(0, 0)
    batch_wait_ms: float = within(2.0, 0, 1000)
    max_in_flight: int = within(128, 1)
    timeout_s: float = within(30.0, 0.01)
    read_timeout_s: float = within(10.0, 0.01)
    drain_s: float = within(2.0, 0)
    stop_s: float = within(7.0, 2.0)
    max_body_mb: float = within(16.0, 0.001, 10_000)
    max_pixels: int = within(4_000_000, 1, 1_000_000_000)
    max_files: int = within(1, 1)
    formats: str = "PNG,JPEG,BMP,TIFF,WEBP"
    api_keys: str | None = field(default=None, repr=False)
    cors_origins: str | None = None
    root_path: str | None = None
    demo: bool = False
    shadow_url: str | None = None
    shadow_fraction: float = within(0.1, 0, 1)
    shadow_report: str | None = None
    shadow_api_key: str | None = field(default=None, repr=False)
    drift_window: int = within(500, 10)
    review_dir: str | None = None
    review_reasons: str = ",".join(REASONS)
    review_share: float = within(0.001, 0, 1)
    review_pictures: int = within(1000, 1)
    review_mb: float = within(1000.0, 0.1)

    def __post_init__(self) -> None:
        """Check types, ranges and words."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        found, checked = check_fields(type(self), "serve", values)
        found += _unknown_formats(self.formats) if isinstance(self.formats, str) else []
        if isinstance(self.shadow_url, str) and not _URL.fullmatch(self.shadow_url):
            shown = _without_password(self.shadow_url)
            found.append(
                f"serve.shadow_url: expected http://host/… or https://host/…, got {shown!r}"
            )
        if isinstance(self.shadow_api_key, str) and not _KEY.fullmatch(self.shadow_api_key):
            found.append("serve.shadow_api_key: expected a key of ASCII letters, digits and signs")
        found += _unfit_for_demo(self) if self.demo is True else []
        found += _unknown_reasons(self.review_reasons)
        for name, read in (("cors_origins", _origins), ("root_path", root_path)):
            try:
                checked[name] = read(checked[name]) or None if checked.get(name) else None
            except (TypeError, ValueError) as error:
                found.append(f"serve.{name}: {error}")
        raise_if_any(found, "settings")
        from magtiles_seg.infer.backends.base import default_device

        checked["device"] = checked["device"] or default_device(Path(checked["model"] or ""))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def read(
        cls, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
    ) -> Settings:
        """Return the settings of an environment, overridden by flags.

        Args:
            environment: Variables by name; None: those of the process. `PORT`, as hosting services
                set it, stands in for `MAGTILES_PORT`, also where Kubernetes put an address there.
                An empty value counts as none.
            flags: Settings by name; None values are skipped.

        Raises:
            ConfigError: A value is invalid: all of them at once.
        """
        environment = os.environ if environment is None else environment
        found: list[str] = []
        values: dict[str, Any] = {}
        for entry in fields(cls):
            text = environment.get(f"{PREFIX}{entry.name.upper()}", "")
            if entry.name == "port" and (not text or text.startswith(_KUBERNETES)):
                text = environment.get("PORT", "")
            if text:
                try:
                    values[entry.name] = parse(text, str(entry.type))
                except ValueError as error:
                    found.append(f"{PREFIX}{entry.name.upper()}: {error}")
        raise_if_any(found, "environment")
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        return cls(**{**values, **given})

    def to_environment(self) -> dict[str, str]:
        """Return what `read` reads these settings from; an empty text stands for None."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            f"{PREFIX}{name.upper()}": "" if value is None else str(value)
            for name, value in values.items()
        }

    def shown(self) -> dict[str, str]:
        """Return every setting as text, without secrets."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        names = [pair.split(":")[0] for pair in (self.api_keys or "").split(",") if pair]
        values["api_keys"] = f"set ({', '.join(names)})" if names else None
        values[SECRET] = "set" if self.shadow_api_key else None
        values["shadow_url"] = _without_password(self.shadow_url)
        return {name: "-" if value is None else str(value) for name, value in values.items()}

    @property
    def review(self) -> ReviewSettings | None:
        """What is kept for a person to look at; None: nothing."""
        if self.review_dir is None:
            return None
        return ReviewSettings(
            directory=Path(self.review_dir),
            reasons=reasons_of(self.review_reasons),
            share=self.review_share,
            most_pictures=self.review_pictures,
            most_mb=self.review_mb,
        )

    @property
    def drain_within_s(self) -> float:
        """Seconds after SIGTERM in which open connections may bring a request."""
        return min(self.drain_s, self.stop_s / 2)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, in bytes."""
        return int(self.max_body_mb * 1_000_000)

    @property
    def format_names(self) -> frozenset[str]:
        """Picture formats that are taken, by Pillow's names."""
        return frozenset(name.strip().upper() for name in self.formats.split(","))

    def plan(self, cores: int) -> Plan:
        """Divide a machine's cores into workers, inferences at once, and threads of each.

        Two inferences on one core each finish more pictures than one inference on two cores, so
        that is what 0 chooses.

        Args:
            cores: Physical cores that the process may use.
        """
        on_cpu = self.device == "cpu"
        threads = min(self.threads, cores) or 1
        several = on_cpu and not self.demo  # a page's requests must all reach one process
        most = min(-(-cores // _CORES_PER_WORKER), cores // threads) if several else 1
        workers = self.workers or most
        streams = max(1, cores // workers // threads) if on_cpu else 1
        batch = self.max_batch or (1 if on_cpu else 16)
        return Plan(workers=workers, streams=streams, threads=threads, max_batch=batch)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the cores are used.

    Attributes:
        workers: Processes.
        streams: Inferences at once in each.
        threads: Of one inference.
        max_batch: Most pictures in one inference.
    """

    workers: int
    streams: int
    threads: int
    max_batch: int


def parse(text: str, kind: str) -> bool | int | float | str:
    """Return the value that a text stands for.

    Args:
        text: From the environment or a command line.
        kind: The setting's type as it is written, such as `float | None`.

    Raises:
        ValueError: The text is no such value.
    """
    kind = kind.removesuffix(" | None")
    if kind == "bool":
        if text.lower() not in _WORDS:
            raise ValueError(f"expected true or false, got {text!r}")
        return _WORDS[text.lower()]
    if kind not in ("int", "float"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        wanted = "a whole number" if kind == "int" else "a number"
        raise ValueError(f"expected {wanted}, got {text!r}") from None


def root_path(text: str) -> str:
    """Return a root path as the service has it: it starts with a slash and ends with none.

    Raises:
        ValueError: The text is none.
    """
    path = f"/{text.strip('/')}" if text.strip("/") else ""
    if path and not ROOT_PATH.fullmatch(path):
        raise ValueError(f"expected a path such as '/line3', got {text!r}")
    return path


def described(kind: type) -> dict[str, str]:
    """Return the sentence of each attribute in a class's docstring, without its marks of code.

    Nothing where Python was told to leave docstrings out.
    """
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", text, re.MULTILINE)
    return {name: " ".join(sentence.split()).replace("`", "") for name, sentence in entries}


def _origins(text: str) -> str:
    """Return origins as browsers write them, a comma between.

    Raises:
        ValueError: One of them is no origin, and would never match.
    """
    origins = [one.strip().rstrip("/").lower() for one in text.split(",")]
    for origin in filter(None, origins):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"expected origins such as 'https://mes.example', got {origin!r}")
    return ",".join(filter(None, origins))


def _unfit_for_demo(settings: Settings) -> list[str]:
    found = []
    if settings.api_keys:
        found.append("serve.demo: the demo asks for no key; expected api_keys or demo, got both")
    if isinstance(settings.workers, int) and settings.workers > 1:
        found.append(f"serve.demo: expected workers of 1 with the demo, got {settings.workers}")
    return found


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a remark on every `MAGTILES_…` variable that no setting reads."""
    known = {f"{PREFIX}{entry.name.upper()}" for entry in fields(Settings)}
    return [
        f"{name} is no setting{nearest(name, known)}"
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in known | _FOREIGN and not _of_kubernetes(name)
    ]


def _of_kubernetes(name: str) -> bool:
    """Return whether Kubernetes sets a variable of this name for a Service called `magtiles`."""
    return bool(re.fullmatch(r"MAGTILES_(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP)\w*)", name))


def _unknown_formats(text: str) -> list[str]:
    from magtiles_seg.image import FORMATS

    names = [name.strip().upper() for name in text.split(",")]
    return [
        f"serve.formats: expected some of {', '.join(FORMATS)}, got {name!r}"
        for name in names
        if name not in FORMATS
    ]


def _unknown_reasons(text: object) -> list[str]:
    names = reasons_of(text) if isinstance(text, str) else REASONS
    wanted = f"serve.review_reasons: expected some of {', '.join(REASONS)}, got"
    found = [f"{wanted} {name!r}{nearest(name, REASONS)}" for name in names if name not in REASONS]
    return found if names else [f"{wanted} none"]


def _without_password(url: str | None) -> str | None:
    if url is None or "@" not in url:
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}"


__all__ = ["PREFIX", "ConfigError", "Plan", "Settings", "described", "parse", "unknown_variables"]
