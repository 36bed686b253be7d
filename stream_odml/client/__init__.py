"""The client of the search service: what it sends, what it gets back, and when it asks again."""

from stream_odml.client.answers import Embedded, Group, Hit, SearchResult
from stream_odml.client.calls import NewImage
from stream_odml.client.client import AsyncClient, Client
from stream_odml.client.exchange import ClientError, ServiceError, ServiceUnreachable, WrongStream

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Embedded",
    "Group",
    "Hit",
    "NewImage",
    "SearchResult",
    "ServiceError",
    "ServiceUnreachable",
    "WrongStream",
]
