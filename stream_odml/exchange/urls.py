"""URLs of stores, taken apart. A local folder is named by a URL without a host: `lancedb:///data/vectors/items`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from stream_odml.exchange.errors import ExchangeError
from stream_odml.storage.outside import root_around
from stream_odml.storage.regular import checked_path


@dataclass(frozen=True)
class Place:
    """A table or collection `name`, on a host or in a folder."""

    url: str
    host: str
    port: int | None
    folder: str
    name: str
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" + (
            f"?table={self.name}" if "table" in self.options else ""
        )


PASSWORD_REMEDY = "write / ? # % @ of a password as %2F %3F %23 %25 %40, or leave it out and set PGPASSWORD"


def place_of(url: str, example: str) -> Place:
    """Take a URL apart whose last part is the name. Raises ExchangeError."""
    parts = urlsplit(url)
    folder, _, name = (unquote(part) for part in parts.path.rstrip("/").rpartition("/"))
    options = dict(parse_qsl(parts.query))
    name = options.get("table", name)
    if "/" in name:
        raise ExchangeError(f"{parts.scheme}://…: the name {name!r} has a /; expected {example}")
    try:
        port = parts.port
    except ValueError:
        postgres = parts.scheme.startswith("postgres")  # there, a mark of a password may have ended the host
        remedy = PASSWORD_REMEDY if postgres else f"expected {example}"
        raise ExchangeError(f"{parts.scheme}://… has no valid port; {remedy}") from None
    # A server may also be named by a socket, in the options.
    if not name or not (parts.hostname or folder or "host" in options):
        raise ExchangeError(f"{parts.scheme}://… names no table or collection; expected {example}")
    if not parts.scheme.startswith("postgres"):
        _check_plain(parts, folder)
    return Place(url, parts.hostname or "", port, folder, name, options)


def _check_plain(parts: SplitResult, folder: str) -> None:
    """Raise ExchangeError for what nothing reads, so that one name is never taken for another: what follows ? or #,
    and a home that only a shell knows."""
    given = [part for part in parts.query.split("&") if part and not part.startswith("table=")]
    if given or parts.fragment:
        mark = "?" if given else "#"
        raise ExchangeError(
            f"{parts.scheme}://… has a {mark} behind its path, and nothing reads what follows; leave it out (a key is "
            "in the environment), or write ? and # of a name as %3F and %23"
        )
    if not parts.hostname:
        try:
            checked_path("folder", folder.lstrip("/") or "/")
        except ValueError as error:
            raise ExchangeError(f"{parts.scheme}://… names a folder that is none: {error}") from None


def check_folder(place: Place) -> None:
    """Raise ExchangeError where a local folder that is to be read does not exist: clients would make it."""
    if not place.host and not Path(place.folder).is_dir():
        raise ExchangeError(f"{place.shown}: the folder {place.folder} does not exist; name an existing one")


def check_outside(folder: str) -> None:
    """Raise ExchangeError for a local folder to be written that lies in a stream root: in its inbox what is written
    would be taken for shards, elsewhere for files of the stream."""
    if (around := root_around(folder)) is not None:
        raise ExchangeError(f"{folder} lies in the stream root {around}; name a folder outside of it")


def connection_of(url: str) -> str:
    """Return a PostgreSQL URL without the part that is ours."""
    parts = urlsplit(url)
    rest = "&".join(part for part in parts.query.split("&") if part and not part.startswith("table="))
    return urlunsplit(("postgresql", parts.netloc, parts.path, rest, ""))
