"""The manifests are what the Kubernetes and KubeRay schemas allow, and fit together and to the package."""

from __future__ import annotations

import ast
import copy
import functools
import re
import shlex
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from stream_odml.config.stream import StreamConfig, load_config
from tests.deploy import kustomize
from tests.deploy.paths import KUBERNETES, REPOSITORY, VARIANTS
from tests.deploy.schema_core import Budget, Claim, ConfigMap, Service
from tests.deploy.schema_ray import (
    Manifest,
    RayJob,
    RayService,
    ServeConfig,
    check,
    clusters,
    templates,
)

# What deploy/README.md tells the user to create.
TOKEN_SECRET = "stream-odml-auth"


@functools.cache
def manifests(variant: str) -> list[Manifest]:
    return [check(document) for document in kustomize.build(KUBERNETES / variant)]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> list[Manifest]:
    return manifests(request.param)


@functools.cache
def _rayjob() -> dict[str, Any]:
    return next(d for d in kustomize.build(KUBERNETES / "base") if d["kind"] == "RayJob")


@pytest.fixture
def job() -> dict[str, Any]:
    return copy.deepcopy(_rayjob())


def _head(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]
    return container


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "misspelt field of the job": lambda j: j["spec"].update(entryPoint="stream-odml run"),
    "misspelt field of the cluster": lambda j: j["spec"]["rayClusterSpec"].update(workerGroupSpec=[]),
    "misspelt field of a container": lambda j: _head(j).update(readynessProbe={}),
    "field of another version of the API": lambda j: j.update(apiVersion="ray.io/v1alpha1"),
    "number where text belongs": lambda j: j["spec"]["rayClusterSpec"]["headGroupSpec"][
        "rayStartParams"
    ].update({"num-cpus": 0}),
    "number as the value of a variable": lambda j: _head(j)["env"][0].update(value=0),
    "text where a number belongs": lambda j: _head(j)["ports"][0].update(containerPort="6379"),
    "text where a truth value belongs": lambda j: j["spec"].update(shutdownAfterJobFinishes="true"),
    "quantity without a known unit": lambda j: _head(j)["resources"]["limits"].update(memory="6GB"),
    "probe with two handlers": lambda j: _head(j)["readinessProbe"].update(exec={"command": ["true"]}),
    "mount without a volume": lambda j: _head(j)["volumeMounts"][0].update(name="nowhere"),
    "unknown submission mode": lambda j: j["spec"].update(submissionMode="HttpMode"),
    "both a cluster and a selector": lambda j: j["spec"].update(clusterSelector={"ray.io/cluster": "x"}),
    "tokens on a Ray that knows none": lambda j: j["spec"]["rayClusterSpec"].update(rayVersion="2.49.0"),
    "required field left out": lambda j: j["spec"]["rayClusterSpec"].pop("headGroupSpec"),
    "more replicas than the maximum": lambda j: j["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(
        replicas=9
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_schema_catches(mistake: str, job: dict[str, Any]) -> None:
    check(job)
    MISTAKES[mistake](job)
    with pytest.raises(ValidationError):
        check(job)


def test_the_schema_looks_into_serve_s_own_text() -> None:
    service = next(d for d in kustomize.build(KUBERNETES / "base") if d["kind"] == "RayService")
    check(service)
    service["spec"]["serveConfigV2"] = service["spec"]["serveConfigV2"].replace("import_path", "importPath")
    with pytest.raises(ValidationError, match="importPath"):
        check(service)


def test_base_holds_every_kind() -> None:
    kinds = {m.kind for v in VARIANTS for m in manifests(v)}
    assert kinds == {
        "RayJob", "RayService", "RayCluster",
        "Service", "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget",
    }  # fmt: skip


def test_every_pod_is_probed_bounded_and_unprivileged(variant: list[Manifest]) -> None:
    for template in templates(variant):
        security = template.spec.securityContext
        assert security is not None
        assert security.runAsNonRoot
        for container in template.spec.containers:
            assert container.startupProbe
            assert container.readinessProbe
            assert container.livenessProbe
            # Ray counts CPUs by the limit and the scheduler by the request: apart, Ray overbooks the node.
            assert container.resources.limits == container.resources.requests
            assert {"cpu", "memory"} <= set(container.resources.limits)
            assert container.securityContext is not None
            assert container.securityContext.allowPrivilegeEscalation is False


def test_every_cluster_asks_for_the_token(variant: list[Manifest]) -> None:
    for spec in clusters(variant):
        assert (spec.authOptions.mode, spec.authOptions.secretName) == ("token", TOKEN_SECRET)


def test_references_resolve(variant: list[Manifest]) -> None:
    maps = {m.metadata.name for m in variant if isinstance(m, ConfigMap)}
    claims = {m.metadata.name for m in variant if isinstance(m, Claim)}
    used = set()
    for template in templates(variant):
        for volume in template.spec.volumes:
            if volume.configMap:
                assert volume.configMap.name in maps
            if volume.persistentVolumeClaim:
                used.add(volume.persistentVolumeClaim.claimName)
    assert used == claims


def test_services_and_budgets_select_pods_that_exist(variant: list[Manifest]) -> None:
    pods = templates(variant)
    for manifest in variant:
        if isinstance(manifest, Service | Budget):
            wanted = (
                manifest.spec.selector
                if isinstance(manifest, Service)
                else manifest.spec.selector.matchLabels
            )
            chosen = [t for t in pods if wanted.items() <= t.metadata.labels.items()]
            assert chosen, f"{manifest.metadata.name} selects nothing"
        if isinstance(manifest, Service):
            open_ports = {
                x
                for t in chosen
                for c in t.spec.containers
                for p in c.ports
                for x in (p.name, p.containerPort)
            }
            assert {p.targetPort for p in manifest.spec.ports} <= open_ports


def test_probes_ask_ports_that_answer(variant: list[Manifest]) -> None:
    agent = 52365  # Ray's dashboard agent listens on every node, without being declared
    for template in templates(variant):
        for container in template.spec.containers:
            declared = {p.containerPort for p in container.ports} | {agent}
            for probe in (container.startupProbe, container.readinessProbe, container.livenessProbe):
                assert probe is not None
                assert probe.httpGet is not None
                assert probe.httpGet.port in declared


def _config(variant: list[Manifest], tmp_path: Any) -> StreamConfig:
    text = next(m for m in variant if isinstance(m, ConfigMap)).data["stream.yaml"]
    (tmp_path / "stream.yaml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "stream.yaml")


def test_the_configuration_is_valid_and_agrees_with_the_pods(variant: list[Manifest], tmp_path: Any) -> None:
    config = _config(variant, tmp_path)
    ports = {p.name: p.containerPort for t in templates(variant) for c in t.spec.containers for p in c.ports}
    assert ports["driver-metrics"] == config.metrics.port
    if "replica-0" in ports:
        assert (ports["replica-0"], ports["replica-1"]) == config.service.metrics_ports
        assert ports["serve"] == config.service.port
    assert config.metrics.host == config.service.host == config.service.metrics_host == "0.0.0.0"
    mounts = {m.mountPath for t in templates(variant) for c in t.spec.containers for m in c.volumeMounts}
    places = [config.root, config.source.path, str(config.cluster.cache_dir or "")]
    for place in places:
        local = place.startswith("/")
        assert not local or any(place == m or place.startswith(f"{m}/") for m in mounts), place
    assert ("/data" in mounts) == config.root.startswith("/data")


def test_the_stream_fits_on_its_smallest_cluster(variant: list[Manifest], tmp_path: Any) -> None:
    """The same sum that the stream makes at its start, on the CPUs and GPUs of `minReplicas`."""
    config = _config(variant, tmp_path)
    c, s = config.cluster, config.service
    stream = next(spec for spec in clusters(variant) if spec.workerGroupSpecs[0].groupName == "train")
    group = stream.workerGroupSpecs[0]
    limits = group.template.spec.containers[0].resources.limits
    cpus = group.minReplicas * float(limits["cpu"])
    gpus = group.minReplicas * float(limits.get("nvidia.com/gpu", "0"))
    serving = s.replicas * s.num_cpus
    assert c.workers * c.cpus_per_worker + c.indexers * c.cpus_per_indexer + c.cpus_per_read + serving <= cpus
    assert c.workers * c.gpus_per_worker + c.indexers * c.gpus_per_indexer == gpus


def test_commands_are_ones_that_the_package_installs(variant: list[Manifest]) -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for manifest in variant:
        if isinstance(manifest, RayJob):
            program, command, path = shlex.split(manifest.spec.entrypoint)
            assert (program in scripts, command) == (True, "run")
            assert path == "/etc/stream-odml/stream.yaml"


def test_serve_imports_something_that_exists() -> None:
    service = next(m for m in manifests("base") if isinstance(m, RayService))
    config = ServeConfig.model_validate(yaml.safe_load(service.spec.serveConfigV2))
    module, name = config.applications[0].import_path.split(":")
    source = REPOSITORY / (module.replace(".", "/") + ".py")
    names = [getattr(n, "name", None) for n in ast.parse(source.read_text(encoding="utf-8")).body]
    assert name in names, f"{module} defines no {name}"


def test_the_ray_version_is_the_pinned_one(variant: list[Manifest]) -> None:
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^ray(?:\[[^\]]*\])?==([0-9.]+)", text, re.MULTILINE)
    assert pinned, "constraints.txt pins no ray"
    assert {spec.rayVersion for spec in clusters(variant)} == {pinned[1]}


def test_search_survives_the_loss_of_a_node() -> None:
    service = next(m for m in manifests("base") if isinstance(m, RayService))
    assert service.spec.rayClusterConfig.workerGroupSpecs[0].minReplicas >= 2
