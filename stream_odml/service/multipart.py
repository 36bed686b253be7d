"""multipart/form-data (RFC 7578) out of a bounded body in memory, strictly: what is malformed is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stream_odml.service.errors import bad_request

MAX_PARTS = 1024
MAX_HEADER_BYTES = 4096
_PARAMETER = re.compile(
    r';\s*(?P<key>[a-z*-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s;"]+))', re.I
)


@dataclass(frozen=True, slots=True)
class Part:
    """One field of the form; ``filename`` is None for a plain one."""

    name: str
    filename: str | None
    content: bytes

    def text(self) -> str:
        """Return the content as UTF-8 text. Raises ApiError 400 for other bytes."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_request(f"the form field {self.name!r} is not UTF-8 text") from None


def header_parameters(value: str) -> dict[str, str]:
    """Return the parameters of a header such as ``form-data; name="a"``, with lower-case keys."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        quoted = match["quoted"]
        text = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        found.setdefault(match["key"].lower(), text)
    return found


def parse_multipart(content_type: str, body: bytes) -> list[Part]:
    """Split ``body`` into its parts. Raises ApiError 400 if the form is malformed."""
    boundary = header_parameters(content_type).get("boundary", "")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise bad_request(
            "the multipart form names no valid boundary", "let the HTTP library set Content-Type"
        )
    marker = b"\r\n--" + boundary.encode("ascii")
    pieces = (b"\r\n" + body).split(marker, MAX_PARTS + 2)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise bad_request(f"the multipart form is cut off or has more than {MAX_PARTS} parts")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, found, content = piece.partition(b"\r\n\r\n")
    if not found or len(head) > MAX_HEADER_BYTES:
        raise bad_request("a part of the multipart form has no readable header")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            parameters = header_parameters(value)
            if "name" in parameters:
                return Part(parameters["name"], parameters.get("filename"), content)
    raise bad_request("a part of the multipart form has no Content-Disposition with a name")
