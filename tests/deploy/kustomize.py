"""As much of Kustomize as our folders use, so that what is applied can be checked where kubectl is absent.

A key that is not known here is an error, not something to skip. A test holds this and `kubectl kustomize` to
the same output.
"""

# Field names are Kubernetes's own; pydantic copies the defaults.
# ruff: noqa: RUF012
from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from tests.deploy.schema_core import Strict

Document = dict[str, Any]


class Target(Strict):
    kind: str
    name: str | None = None


class Patch(Strict):
    path: str
    target: Target | None = None


class Generator(Strict):
    name: str
    behavior: Literal["create", "merge", "replace"] = "create"
    files: Annotated[list[str], Field(min_length=1)]


class GeneratorOptions(Strict):
    disableNameSuffixHash: Literal[True]


class Image(Strict):
    name: str
    newName: str | None = None
    newTag: str | None = None


class Kustomization(Strict):
    apiVersion: Literal["kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"]
    kind: Literal["Kustomization", "Component"]
    resources: list[str] = []
    components: list[str] = []
    patches: list[Patch] = []
    configMapGenerator: list[Generator] = []
    generatorOptions: GeneratorOptions | None = None
    images: list[Image] = []


def read(folder: Path) -> Kustomization:
    """The kustomization.yaml of ``folder``. Raises pydantic.ValidationError."""
    text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
    return Kustomization.model_validate(yaml.safe_load(text))


def build(folder: Path) -> list[Document]:
    """The documents that ``folder`` makes, as `kubectl kustomize` does (order apart)."""
    return _apply(folder, read(folder), [])


def _apply(folder: Path, rules: Kustomization, documents: list[Document]) -> list[Document]:
    for entry in rules.resources:
        path = folder / entry
        documents += build(path) if path.is_dir() else _documents(path)
    for generator in rules.configMapGenerator:
        _generate(folder, generator, documents)
    for entry in rules.components:
        documents = _apply(folder / entry, read(folder / entry), documents)
    for patch in rules.patches:
        documents = _patch(folder / patch.path, patch.target, documents)
    for image in rules.images:
        _set_image(documents, image)
    return documents


def _documents(path: Path) -> list[Document]:
    # A round trip through text ends the sharing of nodes that YAML anchors leave behind.
    return [copy.deepcopy(d) for d in yaml.load_all(path.read_text(encoding="utf-8"), _Unshared) if d]


class _Unshared(yaml.SafeLoader):
    """Each alias is a copy of its anchor, so that a patch of one does not change the other."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        return copy.deepcopy(super().compose_node(parent, index))


def _generate(folder: Path, generator: Generator, documents: list[Document]) -> None:
    data = {Path(f).name: (folder / f).read_text(encoding="utf-8") for f in generator.files}
    if generator.behavior == "create":
        metadata = {"name": generator.name}
        documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        return
    matches = [d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == generator.name]
    if len(matches) != 1:
        raise ValueError(f"{folder}: no ConfigMap {generator.name} to {generator.behavior}")
    matches[0]["data"] = data if generator.behavior == "replace" else {**matches[0]["data"], **data}


def _patch(path: Path, target: Target | None, documents: list[Document]) -> list[Document]:
    body = yaml.safe_load(path.read_text(encoding="utf-8"))
    if target is None:
        return _strategic(path, body, documents)
    for document in documents:
        named = target.name in (None, document["metadata"]["name"])
        if document["kind"] == target.kind and named:
            for operation in body:
                _operate(document, operation, path)
    return documents


def _strategic(path: Path, body: Document, documents: list[Document]) -> list[Document]:
    if body.pop("$patch", None) != "delete":
        raise ValueError(f"{path}: only `$patch: delete` is known here")
    key = (body["kind"], body["metadata"]["name"])
    kept = [d for d in documents if (d["kind"], d["metadata"]["name"]) != key]
    if len(kept) == len(documents):
        raise ValueError(f"{path}: nothing named {key} to delete")
    return kept


def _operate(document: Document, operation: dict[str, Any], path: Path) -> None:
    """One operation of RFC 6902; raises ValueError where it does not apply."""
    steps = [s.replace("~1", "/").replace("~0", "~") for s in operation["path"].split("/")[1:]]
    place: Any = document
    try:
        for step in steps[:-1]:
            place = place[int(step) if isinstance(place, list) else step]
        last: Any = int(steps[-1]) if isinstance(place, list) and steps[-1] != "-" else steps[-1]
        match operation["op"]:
            case "test":
                if place[last] != operation["value"]:
                    raise ValueError(f"{path}: {operation['path']} is {place[last]!r}")
            case "add" if isinstance(place, list):
                place.insert(len(place) if last == "-" else last, operation["value"])
            case "replace":
                place[last]
                place[last] = operation["value"]
            case "add":
                place[last] = operation["value"]
            case "remove":
                del place[last]
            case other:
                raise ValueError(f"{path}: unknown operation {other!r}")
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path}: nothing at {operation['path']} ({error!r})") from error


def _set_image(node: Any, image: Image) -> None:
    if isinstance(node, list):
        for item in node:
            _set_image(item, image)
    elif isinstance(node, dict):
        for container in node.get("containers", []):
            if container.get("image", "").partition(":")[0] == image.name:
                container["image"] = f"{image.newName or image.name}:{image.newTag}"
        for value in node.values():
            _set_image(value, image)
