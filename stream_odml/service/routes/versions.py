"""Versions: the tree, what changed between two of them, going back, and learning a refused task after all."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as UrlQuery
from starlette.responses import Response

from stream_odml.search.version_diff import diff_versions
from stream_odml.service.body import media_type, unsupported
from stream_odml.service.errors import ApiError, not_found, version_named
from stream_odml.service.replies import backend_of, reply, version_json, view
from stream_odml.store.unlearnt import NOTHING
from stream_odml.store.versions import Version, VersionTree

router = APIRouter(prefix="/v1/versions", tags=["versions"], default_response_class=Response)
tasks = APIRouter(prefix="/v1/tasks", tags=["tasks"], default_response_class=Response)


@router.get("", summary="The tree of versions")
async def versions(request: Request) -> Response:
    """Return every committed version with its parent and metrics, in order of commit; which is the head; and the
    tasks that it has not learnt because they were refused or skipped, with the reason and what to do."""
    backend = backend_of(request, "versions")
    history = await backend.versions()
    tree = history.tree

    def shown() -> dict[str, Any]:
        rows = [version_json(row) for row in tree.versions.values()]
        seen = {"head": tree.head, "sequence": history.sequence, "versions": rows}
        return {**seen, "not_learnt": history.not_learnt}

    return await view(request, backend, ("versions",), len(tree.versions), shown)


@router.post("/{version}/rollback", status_code=202, summary="Serve another version")
async def rollback(
    version: str,
    request: Request,
    relearn: Annotated[
        bool, UrlQuery(description="learn again what only the abandoned branch has learnt; else skip it")
    ] = True,
) -> Response:
    """Ask the driver to move the head, back or forward. No item is lost: vectors are mapped along the tree."""
    backend = backend_of(request, "rollback")
    if media_type(request) not in ("", "application/json"):
        raise unsupported(request, "no body")
    found = _find((await backend.versions()).tree, version)
    if found.retired:
        raise ApiError(
            409, "retired", "the model of this version was dropped by retention", "choose a later version"
        )
    return reply(await backend.rollback(found.version_id, relearn), 202)


@router.get("/{a}/diff/{b}", summary="What changed between two versions")
async def diff(a: str, b: str, request: Request) -> Response:
    """Return figures of both versions side by side, and the classes whose recall went up or down from a to b."""
    tree = (await backend_of(request, "versions").versions()).tree
    before, after = _find(tree, a), _find(tree, b)
    return reply(diff_versions(before.version_id, before.metrics, after.version_id, after.metrics))


def _find(tree: VersionTree, name: str) -> Version:
    """Return the version that `name`, its beginning, or `head` stands for. ApiError 404, or 422 where
    several begin so."""
    if (found := version_named(tree, name)) is not None:
        return tree.get(found)
    raise not_found("unknown_version", f"there is no version {name[:80]!a}", "GET /v1/versions lists them")


@tasks.post("/{task}/relearn", status_code=202, summary="Learn a task after all")
async def relearn(
    task: str,
    request: Request,
    anyway: Annotated[bool, UrlQuery(description="publish it whatever the quality gate finds")] = False,
) -> Response:
    """Ask the driver to learn a refused or skipped task after all, once those that wait are learnt. Safe to repeat."""
    backend = backend_of(request, "relearn")
    history = await backend.versions()
    if task in history.tree.learnt():
        raise ApiError(
            409,
            "learnt",
            f"the served version {history.tree.head} has learnt {task}",
            "nothing is to be done",
        )
    for row in history.not_learnt:
        if row["task"] == task and row["reason"].endswith(NOTHING):
            raise ApiError(409, "nothing_to_learn", f"{task} holds {row['reason']}", row["remedy"])
    return reply(await backend.relearn(task, anyway), 202)
