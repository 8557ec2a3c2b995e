"""Who asks the demo: a visitor is a browser, known by a cookie; its page is a session."""

from __future__ import annotations

import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import SimpleCookie

from starlette.requests import HTTPConnection

COOKIE = "magtiles_demo"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SESSIONS = 512


@dataclass(frozen=True)
class Visitor:
    """One browser.

    Attributes:
        token: Its secret.
        is_new: It sent no cookie. A client that keeps none (a script, a frame whose cookies the
            browser blocks) is new each time: it owns what new visitors made, and needs to know its
            name, which nobody can guess.
    """

    token: str
    is_new: bool = False

    @classmethod
    def of(cls, request: HTTPConnection) -> Visitor:
        """Return who sent a request; a new visitor where it names none."""
        token = request.cookies.get(COOKIE, "")
        if _TOKEN.fullmatch(token):
            return cls(token)
        return cls(secrets.token_urlsafe(32), is_new=True)

    def is_same(self, other: Visitor) -> bool:
        """Tell whether both are the same browser, as far as one can know."""
        same = hmac.compare_digest(self.token, other.token)
        return same or (self.is_new and other.is_new)

    def cookie(self, *, path: str, https: bool) -> str:
        """Return the header `Set-Cookie` that makes the browser known.

        Args:
            path: Where the demo lies.
            https: Whether the page is encrypted: then it also works in a frame of another site.
        """
        jar: SimpleCookie = SimpleCookie({COOKIE: self.token})
        jar[COOKIE]["path"], jar[COOKIE]["httponly"] = path, True
        sites = "SameSite=None; Secure; Partitioned" if https else "SameSite=Lax"
        return f"{jar[COOKIE].OutputString()}; {sites}"


class Sessions:
    """Whose the open pages are. A session belongs to the visitor who names it first."""

    def __init__(self, forget: Callable[[str], object]) -> None:
        """Start with none.

        Args:
            forget: Called with the name of a session that was dropped to make room.
        """
        self._owners: OrderedDict[str, Visitor] = OrderedDict()
        self._forget = forget

    def admits(self, name: object, visitor: Visitor) -> bool:
        """Tell whether a session is this visitor's, or becomes so now."""
        if not isinstance(name, str) or not _SESSION.fullmatch(name):
            return False
        owner = self._owners.setdefault(name, visitor)
        if not visitor.is_same(owner):
            return False
        self._owners.move_to_end(name)
        if len(self._owners) > _SESSIONS:
            self._forget(self._owners.popitem(last=False)[0])
        return True

    def owner_of(self, name: str) -> Visitor | None:
        """Return whose a session is."""
        return self._owners.get(name)
