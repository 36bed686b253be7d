"""KubeRay's ray.io/v1 resources as strict types, with the operator's own rules that span several fields.

Written from the public CRD reference (KubeRay v1.6). Fields that our manifests have no use for are absent, so
that using a new one means looking it up first.
"""

# Field names are Kubernetes's own; pydantic copies the defaults.
# ruff: noqa: RUF012
from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, model_validator

from tests.deploy.schema_core import (
    Budget,
    Claim,
    ConfigMap,
    EmbeddedService,
    Metadata,
    Name,
    PodTemplate,
    Resources,
    Seconds,
    Service,
    Strict,
)

FIRST_RAY_WITH_TOKENS = (2, 52, 0)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secretName: Name | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: Seconds | None = None
    resources: Resources | None = None


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enableIngress: bool | None = None
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=0)]
    numOfHosts: Annotated[int, Field(ge=1)] = 1
    idleTimeoutSeconds: Seconds | None = None
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _replicas_in_range(self) -> WorkerGroup:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"group {self.groupName}: minReplicas <= replicas <= maxReplicas does not hold")
        return self


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    authOptions: AuthOptions
    suspend: bool | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []

    @model_validator(mode="after")
    def _tokens_need_ray(self) -> ClusterSpec:
        seen = tuple(int(part) for part in self.rayVersion.split("."))
        if self.authOptions.mode == "token" and seen < FIRST_RAY_WITH_TOKENS:
            raise ValueError(f"rayVersion {self.rayVersion} knows no tokens; 2.52.0 is the first that does")
        return self


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class SubmitterConfig(Strict):
    backoffLimit: Annotated[int, Field(ge=0)]


class JobSpec(Strict):
    entrypoint: Annotated[str, Field(min_length=1)]
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: Annotated[int, Field(ge=0)] = 0
    submitterConfig: SubmitterConfig | None = None
    submitterPodTemplate: PodTemplate | None = None
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    runtimeEnvYAML: str | None = None
    metadata: dict[str, str] = {}
    entrypointNumCpus: float = 0.0
    entrypointNumGpus: float = 0.0
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Seconds = 0
    suspend: bool = False
    clusterSelector: dict[str, str] = {}
    rayClusterSpec: ClusterSpec | None = None

    @model_validator(mode="after")
    def _operator_rules(self) -> JobSpec:
        if bool(self.clusterSelector) == (self.rayClusterSpec is not None):
            raise ValueError("exactly one of clusterSelector and rayClusterSpec")
        if self.clusterSelector and self.backoffLimit:
            raise ValueError("backoffLimit cannot be used with clusterSelector")
        if self.ttlSecondsAfterFinished and not self.shutdownAfterJobFinishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        if self.suspend and (self.clusterSelector or not self.shutdownAfterJobFinishes):
            raise ValueError("suspend needs shutdownAfterJobFinishes and a cluster of the job's own")
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServeSpec(Strict):
    serveConfigV2: str
    upgradeStrategy: UpgradeStrategy | None = None
    excludeHeadPodFromServeSvc: bool | None = None
    serveService: EmbeddedService | None = None
    rayClusterConfig: ClusterSpec

    @model_validator(mode="after")
    def _config_is_serve_s(self) -> ServeSpec:
        ServeConfig.model_validate(yaml.safe_load(self.serveConfigV2))
        return self


class HttpOptions(Strict):
    host: str = "0.0.0.0"
    port: int = 8000
    request_timeout_s: float | None = None


class Application(Strict):
    name: str
    route_prefix: Annotated[str, Field(pattern="^/")]
    import_path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    args: dict[str, Any] = {}
    runtime_env: dict[str, Any] = {}


class ServeConfig(Strict):
    """The text of `serveConfigV2`: Ray Serve's own configuration file."""

    proxy_location: Literal["EveryNode", "HeadOnly", "Disabled"] = "EveryNode"
    http_options: HttpOptions = HttpOptions()
    applications: Annotated[list[Application], Field(min_length=1)]


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServeSpec


Manifest = Annotated[
    RayCluster | RayJob | RayService | Service | ConfigMap | Claim | Budget, Field(discriminator="kind")
]
_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def check(document: Any) -> Manifest:
    """Validate one document. Raises pydantic.ValidationError with the path of each mistake."""
    return _MANIFEST.validate_python(document)


def clusters(manifests: Iterable[Manifest]) -> list[ClusterSpec]:
    """The Ray clusters that `manifests` start."""
    found = []
    for manifest in manifests:
        match manifest:
            case RayCluster():
                found.append(manifest.spec)
            case RayJob():
                found.extend([manifest.spec.rayClusterSpec] if manifest.spec.rayClusterSpec else [])
            case RayService():
                found.append(manifest.spec.rayClusterConfig)
    return found


def templates(manifests: Iterable[Manifest]) -> list[PodTemplate]:
    """The pods of those clusters, heads first."""
    return [
        template
        for spec in clusters(manifests)
        for template in (spec.headGroupSpec.template, *(group.template for group in spec.workerGroupSpecs))
    ]
