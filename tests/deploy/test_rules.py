"""Rules and dashboard ask only for what the exporters offer; promtool tests each alert, the README explains it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import kustomize
from tests.deploy.paths import (
    DEPLOY,
    KUBERNETES,
    REPOSITORY,
    load_dashboard,
    load_rules,
    panel_queries,
    tool,
)
from tests.deploy.promql import example_driver, exposed, names, recorded, unknown

ALERTS = [rule for rule in load_rules() if "alert" in rule]
PROMETHEUS = DEPLOY / "prometheus"


def test_names_are_found_and_misspelt_ones_are_missed() -> None:
    expression = 'sum(rate(stream_odml_query_seconds_bucket{kind="stream_odml_x"}[5m])) / stream_odml_classes'
    assert names(expression) == {"stream_odml_query_seconds_bucket", "stream_odml_classes"}
    assert unknown([expression]) == set()
    assert unknown(["stream_odml_clases", "stream_odml_queries"]) == {
        "stream_odml_clases",
        "stream_odml_queries",
    }


@pytest.mark.parametrize("rule", load_rules(), ids=lambda r: r.get("alert") or r["record"])
def test_a_rule_reads_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert unknown([rule["expr"]]) == set()


@pytest.mark.parametrize(("title", "expression"), list(panel_queries()))
def test_a_panel_reads_metrics_that_exist(title: str, expression: str) -> None:
    assert names(expression)
    assert unknown([expression]) == set()


def test_every_metric_of_the_driver_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = set().union(
        *(names(e) for e in (*(q for _, q in panel_queries()), *(r["expr"] for r in load_rules())))
    )
    bare = {re.sub(r"_(bucket|sum|count|created)$", "", n) for n in exposed(example_driver().registry)}
    silent = {n for n in bare if not {n, f"{n}_bucket"} & asked}
    # The depth of the stage is in the version's name, which the first panel shows.
    assert silent == {"stream_odml_stage"}


def test_recorded_names_follow_level_metric_operation() -> None:
    assert all(re.fullmatch(r"stream_odml:[a-z_]+:[a-z0-9_]+", name) for name in recorded())


def test_rules_pass_promtool() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(PROMETHEUS / "rules" / "stream_odml.yml")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rule_tests_pass_promtool() -> None:
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "rules_test.yml"],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_is_awake(tmp_path: Path) -> None:
    """A threshold moved by mistake must make the rule tests fail."""
    promtool = tool("promtool")
    rules = (PROMETHEUS / "rules" / "stream_odml.yml").read_text(encoding="utf-8")
    (tmp_path / "rules").mkdir()
    broken = rules.replace("stream_odml_forgetting > 0.1", "stream_odml_forgetting > 0.9")
    (tmp_path / "rules" / "stream_odml.yml").write_text(broken, encoding="utf-8")
    (tmp_path / "rules_test.yml").write_bytes((PROMETHEUS / "rules_test.yml").read_bytes())
    done = subprocess.run(
        [promtool, "test", "rules", "rules_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0


@pytest.mark.parametrize("rule", ALERTS, ids=lambda r: r["alert"])
def test_every_alert_fires_in_a_test_is_silent_in_another_and_is_explained(rule: dict[str, Any]) -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
    assert any(case.get("exp_alerts") for case in cases)
    assert any(not case.get("exp_alerts") for case in cases)
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_dashboard_in_the_tree_is_what_its_generator_prints() -> None:
    script = DEPLOY / "grafana" / "dashboard.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=True
    )
    stored = (DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8")
    assert stored == done.stdout, "run: python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json"


def test_panels_tile_without_overlap() -> None:
    seen: set[tuple[int, int]] = set()
    panels = load_dashboard().dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & seen
        seen |= cells


def test_provisioning_names_a_prometheus_and_a_folder() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["type"] == "prometheus"
    boards = yaml.safe_load((folder / "dashboards" / "stream_odml.yml").read_text(encoding="utf-8"))
    assert boards["providers"][0]["options"]["path"].startswith("/")


def test_scrape_configuration_passes_promtool() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(PROMETHEUS / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _pod_targets(variant: str) -> list[dict[str, Any]]:
    """What Kubernetes discovery reports of the manifests' pods: a target for each declared port."""
    targets = []
    for document in kustomize.build(KUBERNETES / variant):
        spec = document.get("spec", {})
        cluster = (
            spec.get("rayClusterSpec")
            or spec.get("rayClusterConfig")
            or (spec if "headGroupSpec" in spec else None)
        )
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] if cluster else []:
            metadata, container = group["template"]["metadata"], group["template"]["spec"]["containers"][0]
            for port in container["ports"]:
                labels = {
                    "__meta_kubernetes_pod_annotation_prometheus_io_scrape": metadata["annotations"][
                        "prometheus.io/scrape"
                    ],
                    "__meta_kubernetes_pod_label_app_kubernetes_io_part_of": metadata["labels"][
                        "app.kubernetes.io/part-of"
                    ],
                    "__meta_kubernetes_pod_container_port_name": port["name"],
                    "__meta_kubernetes_pod_name": metadata["labels"]["stream-odml.io/role"],
                    "__meta_kubernetes_namespace": "default",
                    "__meta_kubernetes_pod_node_name": "node",
                }
                targets.append({"targets": [f"10.0.0.1:{port['containerPort']}"], "labels": labels})
    return targets


def test_kubernetes_discovery_finds_exactly_the_ports_that_carry_metrics(tmp_path: Path) -> None:
    """Debian's promtool knows no Kubernetes: the manifests' pods stand in for it, the relabelling is real."""
    promtool = tool("promtool")
    config = yaml.safe_load((PROMETHEUS / "prometheus-kubernetes.yml").read_text(encoding="utf-8"))
    job = config["scrape_configs"][0]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    stranger = {
        "targets": ["10.0.0.9:80"],
        "labels": {"__meta_kubernetes_pod_container_port_name": "metrics"},
    }
    (tmp_path / "pods.json").write_text(json.dumps([*_pod_targets("base"), stranger]), encoding="utf-8")
    job["file_sd_configs"] = [{"files": [str(tmp_path / "pods.json")]}]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump({**config, "rule_files": []}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "service-discovery", "--timeout=2s", str(path), "stream-odml-pods"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    kept = [t["labels"] for t in json.loads(done.stdout) if t.get("labels")]
    assert {(t["pod"], t["__address__"].partition(":")[2], t["job"]) for t in kept} == {
        ("stream-head", "8080", "ray"),
        ("stream-head", "9464", "stream-odml-driver"),
        ("train", "8080", "ray"),
        ("train", "9464", "stream-odml-driver"),
        ("search-head", "8080", "ray"),
        ("search", "8080", "ray"),
        ("search", "9410", "stream-odml-replica"),
        ("search", "9411", "stream-odml-replica"),
    }
