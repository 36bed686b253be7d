"""The container file names only what exists: paths it copies, commands it runs, what its context holds."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from fnmatch import fnmatch

import pytest
import typer

from tests.deploy import kustomize
from tests.deploy.paths import DEPLOY, KUBERNETES, REPOSITORY

INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Pairs (instruction, rest) with continued lines joined, comments gone and ARG defaults filled in."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]
    defaults = dict(rest.split("=", 1) for name, rest in found if name == "ARG")
    return [(name, re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], m[0]), rest)) for name, rest in found]


def copied() -> list[str]:
    return [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]


def test_only_instructions_that_docker_knows() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0] == ("FROM", "python:3.11-slim")


@pytest.mark.parametrize("source", copied())
def test_every_copied_path_exists(source: str) -> None:
    assert (REPOSITORY / source).exists(), f"deploy/Dockerfile copies {source}, which is not there"


@pytest.mark.parametrize("source", copied())
def test_the_build_context_holds_every_copied_path(source: str) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    ignored = False
    for pattern in patterns:  # the last match wins, as docker has it
        if fnmatch(source, pattern.removeprefix("!")):
            ignored = not pattern.startswith("!")
    assert not ignored, f".dockerignore keeps {source} out"


def test_the_context_holds_what_the_build_reads() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied())
    install = next(rest for name, rest in instructions() if name == "RUN" and "pip install" in rest)
    assert install.startswith('pip install -c "$(basename "constraints.txt")" .')


def test_the_command_is_one_that_the_package_installs() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    command = json.loads(next(rest for name, rest in instructions() if name == "CMD"))
    assert command[0] in scripts
    module, _, attribute = scripts[command[0]].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    group = typer.main.get_command(importlib.import_module(module).app)
    assert isinstance(group, typer.core.TyperGroup)
    assert command[1] in group.commands, f"the CLI has no {command[1]}"


def test_it_runs_as_the_user_of_the_manifests() -> None:
    user = next(rest for name, rest in instructions() if name == "USER")
    job = next(d for d in kustomize.build(KUBERNETES / "base") if d["kind"] == "RayJob")
    security = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert user != "0:0"
