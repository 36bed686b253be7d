"""Forms: their parts to the byte, and a refusal as soon as a bound is passed."""

from __future__ import annotations

import pytest

from stream_odml.service.errors import ApiError
from stream_odml.service.multipart import MAX_HEADER_BYTES, MAX_HEADERS, MAX_PARTS, parse_multipart

TYPE = "multipart/form-data; boundary=x"
IMAGE = b'--x\r\nContent-Disposition: form-data; name="image"'


def refusal(body: bytes, content_type: str = TYPE) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parse_multipart(content_type, body)
    assert (refused.value.status, refused.value.error) == (400, "bad_request")
    return refused.value


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"a\r\nb\r\n-c\r\n--y", b"\r\n--" * 9, bytes(range(256)) * 300]
)
def test_a_part_is_what_was_sent_to_the_byte(content: bytes) -> None:
    body = IMAGE + b'; filename="a\\"b.png"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
    body += '--x\r\ncontent-disposition:form-data;name="\u00e9t\u00e9"\r\n\r\n\u00fc\r\n--x--\r\n'.encode()
    image, field = parse_multipart(TYPE, body)
    assert (image.name, image.content) == ("image", content)
    assert (field.name, field.text()) == ("\u00e9t\u00e9", "\u00fc")


def test_a_part_in_base64_is_decoded() -> None:
    head = IMAGE + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    assert parse_multipart(TYPE, head + b"YWJj\r\n--x--")[0].content == b"abc"
    refusal(head + b"YWJ\r\n--x--")


def test_a_form_has_so_many_parts_and_not_one_more() -> None:
    part = IMAGE + b"\r\n\r\nabc\r\n"
    assert len(parse_multipart(TYPE, part * MAX_PARTS + b"--x--")) == MAX_PARTS
    assert str(MAX_PARTS) in refusal(part * (MAX_PARTS + 1) + b"--x--").detail
    assert str(MAX_PARTS) in refusal(part * (MAX_PARTS + 1) + b"--x\r\nthe rest is not looked at").detail


@pytest.mark.parametrize(
    "headers",
    [
        b"X-A: " + b"a" * MAX_HEADER_BYTES + b"\r\n",
        b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 60,
        b"X-A: a\r\n" * MAX_HEADERS,
    ],
)
def test_the_headers_of_a_part_are_bounded(headers: bytes) -> None:
    few = IMAGE + b"\r\n" + b"X-A: aaaa\r\n" * 20 + b"\r\nabc\r\n--x--"
    assert parse_multipart(TYPE, few)[0].content == b"abc"
    refusal(IMAGE + b"\r\n" + headers + b"\r\nabc\r\n--x--")


@pytest.mark.parametrize("cut", [0, 3, 20, 60, -1, -3])
def test_a_form_that_is_cut_off_is_refused(cut: int) -> None:
    whole = IMAGE + b"\r\n\r\nabcdefgh\r\n--x--"
    assert parse_multipart(TYPE, whole)
    refusal(whole[:cut])


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", f"{TYPE}{'x' * 70}"]
)
def test_a_boundary_is_one_to_seventy_characters(kind: str) -> None:
    assert "boundary" in refusal(b"--x--", kind).detail
