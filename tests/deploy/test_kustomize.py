"""Every path that a kustomization names exists, every patch applies, and kubectl makes the same of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.deploy import kustomize
from tests.deploy.paths import KUBERNETES, VARIANTS


def folders() -> list[Path]:
    return sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))


def _by_name(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def test_every_file_is_used_and_every_used_file_exists() -> None:
    used = set()
    for folder in folders():
        rules = kustomize.read(folder)
        named = [*rules.resources, *rules.components, *(p.path for p in rules.patches)]
        named += [f for g in rules.configMapGenerator for f in g.files]
        used |= {(folder / name).resolve() for name in named} | {folder / "kustomization.yaml"}
    missing = [path for path in used if not path.exists()]
    assert not missing
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} <= used


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_what_kubectl_makes(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("NOT CHECKED: kubectl is not installed; the Python builder alone was used")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / name)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert _by_name(kustomize.build(KUBERNETES / name)) == _by_name(list(yaml.safe_load_all(done.stdout)))


def test_gpu_overlay_gives_gpus_to_training_only() -> None:
    documents = _by_name(kustomize.build(KUBERNETES / "overlays/gpu"))
    job = documents["RayJob", "stream-odml"]["spec"]["rayClusterSpec"]
    worker = job["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["tolerations"][0]["key"] == "nvidia.com/gpu"
    head = job["headGroupSpec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in str(documents["RayService", "stream-odml-search"])


def test_s3_overlay_leaves_no_shared_volume() -> None:
    documents = _by_name(kustomize.build(KUBERNETES / "overlays/s3"))
    assert "persistentVolumeClaim" not in str(documents)
    assert not [kind for kind, _ in documents if kind == "PersistentVolumeClaim"]
    config = yaml.safe_load(documents["ConfigMap", "stream-odml-config"]["data"]["stream.yaml"])
    assert config["root"].startswith("s3://")


@pytest.mark.parametrize("part", ["gpu", "s3"])
def test_components_fit_the_standing_cluster_too(part: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "k")
    mine = tmp_path / "k" / "mine"
    mine.mkdir()
    rules = {"resources": ["../cluster"], "components": [f"../components/{part}"]}
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump({**head, **rules}), encoding="utf-8")
    before = _by_name(kustomize.build(KUBERNETES / "cluster"))["RayCluster", "stream-odml"]
    after = _by_name(kustomize.build(mine))["RayCluster", "stream-odml"]
    assert after != before


def test_a_patch_that_misses_its_group_fails(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "k")
    job = tmp_path / "k" / "base" / "rayjob.yaml"
    job.write_text(
        job.read_text(encoding="utf-8").replace("groupName: train", "groupName: other"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="groupName"):
        kustomize.build(tmp_path / "k" / "overlays" / "gpu")


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    text = (KUBERNETES / "base" / "kustomization.yaml").read_text(encoding="utf-8")
    (tmp_path / "kustomization.yaml").write_text(text + "patchesJson6902: []\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="patchesJson6902"):
        kustomize.read(tmp_path)
