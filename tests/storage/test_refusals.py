"""What an object store's clients say, as they said it, and the line that a person gets."""

from __future__ import annotations

import errno
import os

import pytest

from stream_odml.cli.failures import message_of
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.storage.refusals import store_words, trouble_words

XML = (
    '<?xml version="1.0" encoding="utf-8"?>\n<Error><Code>{}</Code><Message>So it is</Message>'
    "<RequestId>4kG8</RequestId></Error>"
)
TREE = (
    "Kernel error -> Generic S3 error\n  \x1b[31m\u21b3\x1b[0m Error performing list request\n"
    "   \x1b[31m\u21b3\x1b[0m Error performing GET http://s3/b?list-type=2&prefix=x in 9.8ms - "
    "Server returned non-2xx status code\n    \x1b[31m\u21b3\x1b[0m 404 Not Found\n"
    f"     \x1b[31m\u21b3\x1b[0m {XML.format('NoSuchBucket')}"
)
OBSTORE = (
    "Generic S3 error: Error performing PUT https://s3/b/k in 2.1s, after 6 retries, max_retries: 6, "
    "retry_timeout: 60s  - HTTP error: error sending request\n\nDebug source:\nGeneric {\n  InvalidContentType\n}"
)
ROLE = (
    "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1.3ms - HTTP error: x"
)
ARROW = "When listing objects under key 'x/' in bucket 'b': AWS Error ACCESS_DENIED during ListObjectsV2 operation: No"


@pytest.mark.parametrize(
    ("said", "line", "remedy"),
    [
        (TREE, "Error performing GET http://s3/b - Server returned", "there is no such bucket"),
        (OBSTORE, "Error performing PUT https://s3/b/k - HTTP error", "no object store answers there"),
        (ROLE, "Error performing PUT http://169.254", "no credentials were found; set AWS_ACCESS_KEY_ID"),
        (ARROW, "When listing objects under key 'x/'", "give these credentials the right to list"),
        (
            TREE.replace("NoSuchBucket", "InvalidAccessKeyId"),
            "Error performing GET",
            "check AWS_ACCESS_KEY_ID",
        ),
        (TREE.replace("NoSuchBucket", "PermanentRedirect"), "Error performing GET", "set AWS_REGION"),
    ],
)
def test_it_is_one_line_that_ends_with_what_to_do(said: str, line: str, remedy: str) -> None:
    shown = message_of(OSError(said))
    assert shown.startswith(line)
    assert f"; {remedy}" in shown
    assert not {"\n", "<", "\u21b3", "\x1b"} & set(shown)
    assert " in 9.8ms" not in shown
    named = TransientReadError(f"s3://b/x cannot be listed now: {store_words(OSError(said))}")
    assert message_of(named) == str(named), "the remedy is said once"


def test_of_another_error_its_first_line_is_left() -> None:
    assert store_words(OSError("no space\nleft")) == "no space"
    assert store_words(OSError()) == "OSError"
    assert message_of(ValueError("dim is 0; at least 1")) == "dim is 0; at least 1"


def test_who_goes_on_trying_says_a_sentence_of_ours_as_it_is_and_what_frees_a_full_disk() -> None:
    assert (
        trouble_words(TransientReadError("b/x cannot be listed now; look"))
        == "b/x cannot be listed now; look"
    )
    assert trouble_words(KeyError("x")) == "KeyError: 'x'"
    for number in (errno.ENOSPC, errno.EDQUOT):
        of_system = OSError(number, os.strerror(number), "/mnt/root")
        of_table = OSError(f"Generic LocalFileSystem error: {os.strerror(number)} (os error {number})")
        for error in (of_system, of_table):
            assert trouble_words(error).endswith("; free some space, and the stream goes on by itself")
