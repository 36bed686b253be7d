"""What an object store's clients say went wrong, in one line with what to do. They say it in trees, XML and traces."""

from __future__ import annotations

import re
from errno import EDQUOT, ENOSPC
from os import strerror

from stream_odml.wording import first_line, flat

NO_BUCKET = "there is no such bucket at this endpoint; make it, or correct its name or AWS_ENDPOINT_URL"
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "set AWS_REGION to the region of the bucket"
_NOT_THERE = "no object store answers there; check AWS_ENDPOINT_URL and the network"
_REMEDIES = (
    (r"no_?such_?bucket", NO_BUCKET),
    # The address of a machine of Amazon's, asked when nothing else gives credentials.
    (
        r"169\.254\.169\.254|169\.254\.170\.2",
        "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (r"expired_?token", "the credentials have expired; get new ones"),
    (r"invalid_?access_?key|signature_?does_?not_?match|invalid_?client_?token|401 unauthorized", _KEYS),
    (
        r"access_?denied|403 forbidden",
        "give these credentials the right to list, read, write and delete there",
    ),
    (r"permanent_?redirect|301 moved|authorization_?header_?malformed", _REGION),
    (
        r"invalidcontenttype|wrong version number",
        "the endpoint does not speak TLS; write http:// in AWS_ENDPOINT_URL",
    ),
    (r"network_connection|client error \(connect\)|http error: error sending request", _NOT_THERE),
)
_CLIENTS = re.compile(r"Generic S3 error|AWS Error|Error performing (GET|HEAD|PUT|POST|DELETE) ")
_NOISE = re.compile(
    r"Kernel error -> |Generic S3 error: |Error performing list request: |\?\S*(?= in [\d.]+ ?[mµn]?s)"
    r"| in [\d.]+ ?[mµn]?s(, after .*?retry_timeout: \w+ ?)?|<\?xml[^>]*>"
)
_CODE = re.compile(r"<Error>.*?<Code>(\w+)</Code>(?:.*?<Message>([^<]*)</Message>)?.*?(?:</Error>|$)")

_FULL = re.compile(f"{strerror(ENOSPC)}|{strerror(EDQUOT)}")


def is_of_store(text: str) -> bool:
    """Return whether an object store's client said it."""
    return _CLIENTS.search(text) is not None


def store_words(error: BaseException | str) -> str:
    """Return what an object store's client says, short and with a remedy; of another error its first line."""
    if isinstance(error, BaseException) and not is_of_store(str(error)):
        return first_line(error)
    text = flat(str(error).partition("\n\nDebug source:")[0])
    if any(text.endswith(remedy) for _, remedy in _REMEDIES):  # part of a message that was made here
        return text
    remedy = next((remedy for found, remedy in _REMEDIES if re.search(found, text, re.IGNORECASE)), None)
    said = re.sub(r"(: +)+", ": ", _CODE.sub(r": \1: \2", _NOISE.sub("", text)))[:300].strip(" :.")
    return f"{said}; {remedy}" if remedy else said


def trouble_words(error: BaseException) -> str:
    """Return what is said of an error by who goes on trying: of another's error its kind too, and of a full disk what
    to do."""
    own = type(error).__module__.partition(".")[0] == "stream_odml"
    said = store_words(error) if own else f"{type(error).__name__}: {store_words(error)}"
    return f"{said}; free some space, and the stream goes on by itself" if _FULL.search(said) else said
