"""Places in an object store that its clients would take for others, and options that they need spelt out."""

from __future__ import annotations

import pytest

from stream_odml.config.stream import ConfigError, parse_config
from stream_odml.ingest.landing import complete_task
from stream_odml.ingest.object_store import S3Source
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import check_prefix, table_options

HTTP = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    "good", ["s3://b", "s3://b/", "s3://b/a/b/", "s3://b/my photos/ü 猫", "s3://b/a*b'c"]
)
def test_a_prefix_with_spaces_and_foreign_letters_is_a_root(good: str) -> None:
    check_prefix(good)


@pytest.mark.parametrize("wrong", ["s3://b/a//c", "s3://b/a/../c", "s3://b/./a", "s3:///b/a", "s3://"])
def test_a_part_that_is_no_name_is_refused_wherever_a_place_is_named(wrong: str) -> None:
    for use in (open_files, S3Source, lambda place: complete_task(place, "spring", ["a"])):
        with pytest.raises(ValueError, match="write s3://BUCKET/PREFIX"):
            use(wrong)
    with pytest.raises(ConfigError, match="write s3://BUCKET/PREFIX"):
        parse_config({"root": wrong})


@pytest.mark.parametrize("wrong", ["s3://b/a?c", "s3://b/a#c", "s3://b/a%20c", "s3://b/a\tc", "s3://b/a "])
def test_a_root_that_delta_would_make_elsewhere_is_refused(wrong: str) -> None:
    """By `a?c` it writes to `a`, and so would a second stream by `a?d`."""
    with pytest.raises(ValueError, match="which Delta tables cannot take; rename it"):
        open_files(wrong)
    with pytest.raises(ConfigError, match="rename it"):
        parse_config({"root": wrong})


def test_an_endpoint_is_enough_to_reach_a_store_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    assert table_options("s3://b/a", None) is None
    plain = {"AWS_ENDPOINT_URL": HTTP, "AWS_ALLOW_HTTP": "true"}
    assert table_options("s3://b/a", {"AWS_ENDPOINT_URL": HTTP}) == plain
    monkeypatch.setenv("AWS_ENDPOINT_URL", HTTP)
    assert table_options("s3://b/a", None) == plain
    assert table_options("/data/root", None) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    assert table_options("s3://b/a", {"AWS_REGION": "x"}) == {
        "AWS_REGION": "x",
        "AWS_ENDPOINT_URL": "https://minio:9000",
    }
