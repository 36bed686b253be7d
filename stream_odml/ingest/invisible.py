"""Characters that nobody sees: with them two names look the same and are not.

Protects: a name has one of them only where a script or an emoji is written with it and it shows: as Unicode's UAX #31
(joiners, section 2.3) and UTS #51 (emoji) have it. All others, those of UTS #39 among them, are refused.
"""

from __future__ import annotations

import regex

# As RFC 5892 (appendix A) has the joiners: after a virama, and a non-joiner where letters would join.
_SHOWS = regex.compile(
    r"""
    (?<=\p{Ccc=9}) [\u200c\u200d]
    | (?<=[\p{Joining_Type=L}\p{Joining_Type=D}] \p{Joining_Type=T}*) \u200c
      (?=\p{Joining_Type=T}* [\p{Joining_Type=R}\p{Joining_Type=D}])
    | (?<=\p{Extended_Pictographic} [\ufe0f\p{Emoji_Modifier}]?) \u200d (?=\p{Extended_Pictographic})
    | (?<=[\p{Emoji}--\p{Emoji_Presentation}]) \ufe0f
    | (?<=\p{Emoji}) \ufe0e
    | (?<=[\u1820-\u18aa]) [\u180b-\u180d\u180f]  # Mongolian letters have forms that are chosen
    """,
    regex.VERBOSE | regex.VERSION1,
)
_INVISIBLE = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u2800]", regex.VERSION1
)


def shows_at(text: str, at: int) -> bool:
    """Return whether a character that is invisible by itself changes how the text around it is drawn."""
    return _SHOWS.match(text, at) is not None


def first_invisible(text: str) -> str | None:
    """Return the first character of a name that nobody sees where it stands, or None."""
    if text.isascii() and text.isprintable():
        return None
    found = (match for match in _INVISIBLE.finditer(text) if not shows_at(text, match.start()))
    return next((match.group() for match in found), None)
