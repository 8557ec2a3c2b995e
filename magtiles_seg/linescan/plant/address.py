"""Addresses of doors: `mqtt://host/topic`, `opcua://host:4840`, `modbus://host?coil=0`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from magtiles_seg.config import nearest
from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.plant.outbox import Door, Limits, Outbox
from magtiles_seg.names import without_secrets

_LIMITS: Mapping[str, Callable[[str], float]] = {
    "most": int, "expires-s": float, "patience-s": float, "min-score": float, "min-area-px": int,
}  # fmt: skip
_MODBUS: Mapping[str, Callable[[str], float]] = {
    "unit": int, "register": int, "ack": int, "coil": int, "hold-ms": float,
}  # fmt: skip
_LONGEST_TOPIC = 65_535 - len("/status")  # MQTT counts a topic's bytes in 16 bits
_KINDS: Mapping[str, Mapping[str, Callable[[str], object]]] = {
    "mqtt": {"password-file": str},
    "mqtts": {"password-file": str, "ca": str},
    "opcua": {"kept": int},
    "modbus": _MODBUS,
}


def open_door(
    address: str,
    *,
    run: str | None = None,
    labels: tuple[str, ...] | None = None,
    note: Callable[[str], None] | None = None,
) -> Outbox:
    """Return a sink that delivers to the receiver at an address.

    Args:
        address: `mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC`, `mqtts://…`, `opcua://HOST[:PORT]` or
            `modbus://HOST[:PORT]`, with options such as `?min-score=0.6`.
        run: Identifier of the inspection; None: a new one.
        labels: Class names by index, for Modbus; None: the built-in ones.
        note: Told in a line when the receiver goes and comes.

    Raises:
        ConfigError: The address is not understood, or a part of it would have no effect.
        FileNotFoundError: There is no such file of a password or of certificates.
        BackendUnavailableError: The package for this receiver is not installed.
    """
    shown = without_secrets(address)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{shown} is no address: {error}") from None
    if parts.scheme.startswith("mqtt"):
        parts = urlsplit(address, allow_fragments=False)  # a topic with # is told as such
    if parts.scheme not in _KINDS or not parts.hostname:
        raise ConfigError(
            f"{shown} is no address of a receiver; expected mqtt://HOST/TOPIC, mqtts://HOST/TOPIC, "
            "opcua://HOST or modbus://HOST"
        )
    _check_nothing_ignored(parts, shown)
    options = _options(parts, shown)
    limits = Limits(**{_name(key): options.pop(key) for key in _LIMITS if key in options})
    door = _door(parts, parts.hostname, {} if port is None else {"port": port}, options, labels)
    name = without_secrets(parts._replace(query="").geturl())
    return Outbox(door, name=name, run=run, limits=limits, note=note)


def _check_nothing_ignored(parts: SplitResult, shown: str) -> None:
    """Refuse what such a receiver has no use for.

    Raises:
        ConfigError: A name, a password, a path or a fragment would be left out without a word.
    """
    if parts.port == 0:
        raise ConfigError(f"{shown}: port is 0; expected 1..65535")
    if not parts.scheme.startswith("mqtt") and "@" in parts.netloc:
        raise ConfigError(
            f"{shown}: {parts.scheme}:// asks for no name and no password, so they would protect "
            "nothing; leave them out, and keep it in the plant's own network"
        )
    if parts.fragment or (parts.scheme == "modbus" and parts.path.strip("/")):
        raise ConfigError(f"{shown}: expected options behind a '?' after the host, and no more")


def _options(parts: SplitResult, shown: str) -> dict[str, Any]:
    """Return the options behind the question mark, checked.

    Raises:
        ConfigError: One is unknown, given twice, or no number.
    """
    known = {**_KINDS[parts.scheme], **_LIMITS}
    options: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in known:
            raise ConfigError(f"{shown}: unknown option {key!r}{nearest(key, list(known))}")
        if key in options:
            raise ConfigError(f"{shown}: {key} is given twice")
        try:
            options[key] = known[key](value)
        except ValueError:
            raise ConfigError(f"{shown}: {key} is {value!r}; expected a number") from None
    return options


def _name(key: str) -> str:
    return key.replace("-", "_")


def _door(
    parts: SplitResult,
    host: str,
    port: Mapping[str, int],
    options: Mapping[str, object],
    labels: tuple[str, ...] | None,
) -> Door:
    if parts.scheme in ("mqtt", "mqtts"):
        return _mqtt(parts, host, port, options)
    if parts.scheme == "opcua":
        from magtiles_seg.linescan.plant.opcua import OpcUaDoor

        path = {"path": parts.path.strip("/")} if parts.path.strip("/") else {}
        return OpcUaDoor(host, **port, **path, **options)  # type: ignore[arg-type]
    from magtiles_seg.linescan.plant.modbus import ModbusDoor

    named = {_name(key): value for key, value in options.items()}
    if "hold_ms" in named:
        named["hold_s"] = float(str(named.pop("hold_ms"))) / 1000
    named |= {} if labels is None else {"labels": labels}
    return ModbusDoor(host, **port, **named)  # type: ignore[arg-type]


def _mqtt(
    parts: SplitResult, host: str, port: Mapping[str, int], options: Mapping[str, object]
) -> Door:
    from magtiles_seg.linescan.plant.mqtt import MqttDoor

    topic = unquote(parts.path.strip("/"))
    if not topic or "#" in topic or "+" in topic:
        raise ConfigError(
            f"{parts.scheme}://{host} needs a topic without + and #: add it, as in "
            f"{parts.scheme}://{host}/plant/line1"
        )
    if "\0" in topic or len(topic.encode()) > _LONGEST_TOPIC:
        raise ConfigError(
            f"{parts.scheme}://{host}: expected a topic of at most {_LONGEST_TOPIC:,} bytes, none 0"
        )
    password = None if parts.password is None else unquote(parts.password)
    if "password-file" in options:
        password = _password(Path(str(options["password-file"])))
    if "ca" in options and not Path(str(options["ca"])).is_file():
        raise FileNotFoundError(f"ca: there is no file {options['ca']}")
    tls = parts.scheme == "mqtts"
    return MqttDoor(
        host,
        topic,
        port=port.get("port", 8883 if tls else 1883),
        username=None if parts.username is None else unquote(parts.username),
        password=password,
        tls=tls,
        ca=str(options["ca"]) if "ca" in options else None,
    )


def _password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"password-file: {path} is no text in UTF-8") from None
