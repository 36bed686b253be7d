"""Tasks: asking for one that was refused or skipped to be learnt after all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Query as UrlQuery
from starlette.responses import Response

from stream_odml.service.backend import VersionHistory
from stream_odml.service.errors import ApiError
from stream_odml.service.replies import backend_of, reply
from stream_odml.store.unlearnt import NOTHING

router = APIRouter(prefix="/v1/tasks", tags=["tasks"], default_response_class=Response)


@router.post("/{task}/relearn", status_code=202, summary="Learn a task after all")
async def relearn(
    task: str,
    request: Request,
    anyway: Annotated[bool, UrlQuery(description="publish it whatever the quality gate finds")] = False,
) -> Response:
    """Ask the driver to learn a refused or skipped task after all, once those that wait are learnt. Safe to repeat."""
    backend = backend_of(request, "relearn")
    history = await backend.versions()
    if task in _learnt(history):
        raise ApiError(409, "learnt", f"the served version {history.head} has learnt {task}")
    for row in history.not_learnt:
        if row["task"] == task and row["reason"].endswith(NOTHING):
            raise ApiError(409, "nothing_to_learn", f"{task} holds {row['reason']}", row["remedy"])
    return reply(await backend.relearn(task, anyway), 202)


def _learnt(history: VersionHistory) -> set[str]:
    """Return tasks from the root to the head."""
    known = {row.version_id: row for row in history.versions}
    tasks, at = set(), known.get(history.head)
    while at is not None:
        if at.task is not None:
            tasks.add(at.task)
        at = known.get(at.parent) if at.parent is not None else None
    return tasks
