"""Where the files under test are, and the tools that only some machines have."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RULES = DEPLOY / "prometheus" / "rules" / "stream_odml.yml"
VARIANTS = ("base", "cluster", "overlays/gpu", "overlays/s3")


def tool(name: str) -> str:
    """Path of a program; without it the test is skipped, with the reason in the summary."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT CHECKED: {name} is not installed (Debian: apt-get install prometheus)")
    return found


def load_rules() -> list[dict[str, Any]]:
    """All recording and alert rules, in order."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def load_dashboard() -> ModuleType:
    """deploy/grafana/dashboard.py as a module; `deploy` is a folder of files, not a package."""
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    return module


def panel_queries() -> Iterator[tuple[str, str]]:
    """Pairs (panel title, PromQL expression) of the dashboard."""
    for row in load_dashboard().ROWS.values():
        for panel in row:
            for _, expression in panel.queries:
                yield panel.title, expression
