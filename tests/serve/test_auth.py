from __future__ import annotations

import pytest

from magtiles_seg.errors import ConfigError
from magtiles_seg.serve.auth import ApiKeys, new_key


def test_key_of_either_header_is_known_by_name_and_others_are_not() -> None:
    (old, old_entry), (new, new_entry) = new_key("old"), new_key("new")
    keys = ApiKeys.parse(f"{old_entry}, {new_entry}")
    assert keys.name_of({"authorization": f"Bearer {old}"}) == "old"
    assert keys.name_of({"authorization": f"bearer {new}"}) == "new"
    assert keys.name_of({"x-api-key": new}) == "new"
    for headers in (
        {},
        {"x-api-key": new + "x"},
        {"authorization": f"Basic {new}"},
        {"x-api-key": ""},
    ):
        assert keys.name_of(headers) is None


def test_new_key_is_never_the_same_and_its_entry_does_not_hold_it() -> None:
    key, entry = new_key("line.1")
    assert key not in entry
    assert new_key("line.1")[0] != key


def test_parse_of_nothing_has_no_keys() -> None:
    assert not ApiKeys.parse(None).digests


@pytest.mark.parametrize("text", ["abc", "a:b", f":{'0' * 64}", f"a:{'0' * 64},a:{'1' * 64}"])
def test_parse_damaged_entry_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match="is not name:sha256") as caught:
        ApiKeys.parse(text)
    assert "0" * 64 not in str(caught.value)


def test_new_key_with_odd_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="name of a key"):
        new_key("a:b")
