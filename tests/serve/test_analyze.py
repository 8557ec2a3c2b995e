from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from starlette.requests import Request

from magtiles_seg.serve.analyze import check_charset, wish_of
from magtiles_seg.serve.problems import Problem


def request(query: str = "", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "query_string": query.encode(), "headers": raw})


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        ("*/*", False),
        ("image/png", True),
        ("image/*", True),
        ("application/json", False),
        ("application/json;q=0.5, image/png", True),
        ("application/json, image/png;q=0.9", False),
        ("text/html,*/*;q=0.8", False),
        ("image/png;q=0, */*", False),
    ],
)
def test_wish_png_goes_by_the_best_quality(accept: str, png: bool) -> None:
    assert wish_of(request(accept=accept)).png is png


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "", "application/json;q=x"])
def test_wish_of_what_is_not_made_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        wish_of(request(accept=accept))
    assert caught.value.status == 406


def test_wish_heeds_every_accept_field() -> None:
    raw = [(b"accept", b"text/html"), (b"accept", b"image/png")]
    assert wish_of(Request({"type": "http", "query_string": b"", "headers": raw})).png


def test_wish_reads_words_of_repeated_and_joined_queries() -> None:
    wish = wish_of(request("include=verdict,defects&include=overlay&mask=rle"))
    assert wish.include == {"verdict", "defects", "overlay"}
    assert wish.mask == "rle"


@pytest.mark.parametrize(
    "query", ["include=verdikt", "mask=png", "mask=", "threshold=0.9", "mask=rle&tiles=true"]
)
def test_wish_of_unknown_word_is_400(query: str) -> None:
    with pytest.raises(Problem, match="expected") as caught:
        wish_of(request(query))
    assert caught.value.status == 400


def test_wish_zipped_only_where_gzip_is_named() -> None:
    assert wish_of(request(accept_encoding="deflate, gzip")).zipped
    assert not wish_of(request(accept_encoding="gzip;q=0")).zipped
    assert not wish_of(request()).zipped


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "rot13", '"\0"', "utf-16"])
def test_form_with_a_codec_of_the_clients_choice_is_refused(charset: str) -> None:
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    with pytest.raises(Problem, match="charset=utf-8") as caught:
        check_charset(request(content_type=kind))
    assert caught.value.status == 400


@pytest.mark.parametrize("charset", ["", "; charset=UTF-8", '; charset="iso-8859-1"'])
def test_form_with_a_usual_charset_or_none_passes(charset: str) -> None:
    check_charset(request(content_type=f"multipart/form-data; boundary=b{charset}"))
