"""Who may ask: the keys that open the service."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from magtiles_seg.errors import ConfigError
from magtiles_seg.files import sha256_of


@dataclass(frozen=True)
class ApiKeys:
    """The keys that open the service. Of two, one can be replaced while the other still works.

    Attributes:
        digests: SHA-256 of each key, 64 hexadecimal digits, by the key's name.
    """

    digests: Mapping[str, str]

    @classmethod
    def parse(cls, text: str | None) -> ApiKeys:
        """Read `name:sha256,name:sha256`.

        Raises:
            ConfigError: It is not of that form; the message does not repeat the digests.
        """
        digests = {}
        for number, pair in enumerate((text or "").split(",") if text else [], start=1):
            name, _, digest = pair.strip().partition(":")
            if not name or not re.fullmatch(r"[0-9a-f]{64}", digest) or name in digests:
                raise ConfigError(
                    f"api_keys: entry {number} is not name:sha256 with a name of its own and 64 "
                    "small hexadecimal digits; make one with `magtiles-seg serve --new-key NAME`"
                )
            digests[name] = digest
        return cls(digests)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the key that a request carries, or None.

        Args:
            headers: Of the request, names in small letters; `Authorization: Bearer KEY` or
                `X-API-Key: KEY`.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = sha256_of(key.encode("utf-8", "surrogateescape"))
        found = None
        for name, expected in self.digests.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, expected):
                found = name
        return found


def new_key(name: str) -> tuple[str, str]:
    """Return a fresh key, and the entry for `api_keys` that lets it in."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"name of a key: expected letters, digits, '.', '-' or '_', got {name!r}")
    key = f"mt_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{sha256_of(key.encode())}"
