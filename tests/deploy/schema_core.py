"""The part of the Kubernetes core API that our manifests use, as strict types.

Unknown fields and wrong types are errors: a quoted number where Kubernetes wants an integer, a bare number
where it wants a string. Written from the public Kubernetes API reference (v1.30).

By hand: npm has no kubeconform and Debian's kubectl is of 2020. `kubernetes-validate` (PyPI, 22 MB) was tried: it
knows no RayCluster, RayJob or RayService, in which all our pods are, and of six mistakes in a Service and a claim it
finds two (a quoted port, an unknown field), not a bad name, port 99999, "10 gigs" or an unknown access mode.
"""

# Field names are Kubernetes's own.
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,61})?[A-Za-z0-9]$")]
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
PortName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=0)]
AccessMode = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]


class Strict(BaseModel):
    """No unknown field, no conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: dict[str, Label] = {}
    annotations: dict[str, str] = {}


class TemplateMetadata(Strict):
    labels: dict[str, Label] = {}
    annotations: dict[str, str] = {}


class KeyRef(Strict):
    name: Name
    key: str
    optional: bool = False


class NameRef(Strict):
    name: Name
    optional: bool = False


class FieldRef(Strict):
    fieldPath: str


class ValueFrom(Strict):
    secretKeyRef: KeyRef | None = None
    configMapKeyRef: KeyRef | None = None
    fieldRef: FieldRef | None = None


class EnvVar(Strict):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None

    @model_validator(mode="after")
    def _one_source(self) -> EnvVar:
        if (self.value is None) == (self.valueFrom is None):
            raise ValueError(f"env {self.name}: exactly one of value and valueFrom")
        return self


class EnvFrom(Strict):
    prefix: str | None = None
    secretRef: NameRef | None = None
    configMapRef: NameRef | None = None


class ContainerPort(Strict):
    name: PortName
    containerPort: PortNumber
    protocol: Literal["TCP", "UDP"] = "TCP"


class HttpGet(Strict):
    path: Annotated[str, Field(pattern="^/")]
    port: PortNumber | PortName
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"


class Exec(Strict):
    command: list[str]


class Probe(Strict):
    httpGet: HttpGet | None = None
    exec: Exec | None = None
    initialDelaySeconds: Seconds = 0
    periodSeconds: Annotated[int, Field(ge=1)] = 10
    timeoutSeconds: Annotated[int, Field(ge=1)] = 1
    successThreshold: Annotated[int, Field(ge=1)] = 1
    failureThreshold: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _one_handler(self) -> Probe:
        if (self.httpGet is None) == (self.exec is None):
            raise ValueError("a probe has exactly one handler")
        return self


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Capabilities(Strict):
    add: list[str] = []
    drop: list[str] = []


class SeccompProfile(Strict):
    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: bool | None = None
    readOnlyRootFilesystem: bool | None = None
    runAsNonRoot: bool | None = None
    capabilities: Capabilities | None = None


class PodSecurity(Strict):
    runAsNonRoot: bool | None = None
    runAsUser: int | None = None
    runAsGroup: int | None = None
    fsGroup: int | None = None
    seccompProfile: SeccompProfile | None = None


class VolumeMount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    subPath: str | None = None
    readOnly: bool = False


class ClaimRef(Strict):
    claimName: Name
    readOnly: bool = False


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: Name
    configMap: NameRef | None = None
    persistentVolumeClaim: ClaimRef | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        if sum(x is not None for x in (self.configMap, self.persistentVolumeClaim, self.emptyDir)) != 1:
            raise ValueError(f"volume {self.name}: exactly one source")
        return self


class Container(Strict):
    name: Name
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    ports: list[ContainerPort] = []
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    resources: Resources
    securityContext: ContainerSecurity | None = None
    volumeMounts: list[VolumeMount] = []
    startupProbe: Probe | None = None
    readinessProbe: Probe | None = None
    livenessProbe: Probe | None = None


class Toleration(Strict):
    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Selector(Strict):
    matchLabels: Annotated[dict[str, Label], Field(min_length=1)]


class Spread(Strict):
    maxSkew: Annotated[int, Field(ge=1)]
    topologyKey: str
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    labelSelector: Selector


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    initContainers: list[Container] = []
    volumes: list[Volume] = []
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    topologySpreadConstraints: list[Spread] = []
    securityContext: PodSecurity | None = None
    serviceAccountName: Name | None = None
    priorityClassName: str | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    terminationGracePeriodSeconds: Seconds | None = None

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> PodSpec:
        known = {volume.name for volume in self.volumes}
        for container in [*self.initContainers, *self.containers]:
            missing = {mount.name for mount in container.volumeMounts} - known
            if missing:
                raise ValueError(f"container {container.name} mounts unknown volumes {sorted(missing)}")
        return self


class PodTemplate(Strict):
    metadata: TemplateMetadata = TemplateMetadata()
    spec: PodSpec


class ServicePort(Strict):
    name: PortName
    port: PortNumber
    targetPort: PortNumber | PortName | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"


class ServiceSpec(Strict):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    clusterIP: Literal["None"] | None = None
    publishNotReadyAddresses: bool = False
    selector: dict[str, Label] = {}
    ports: Annotated[list[ServicePort], Field(min_length=1)]


class Service(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


class EmbeddedService(Strict):
    """A Service inside a RayService: the operator adds version, kind and selector."""

    metadata: Metadata
    spec: ServiceSpec


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]


class ClaimResources(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    accessModes: list[AccessMode]
    storageClassName: str | None = None
    resources: ClaimResources


class Claim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class BudgetSpec(Strict):
    """Only `minAvailable` as a number: a RayCluster has no scale subresource, which every other form needs."""

    minAvailable: Annotated[int, Field(ge=0)]
    selector: Selector


class Budget(Strict):
    apiVersion: Literal["policy/v1"]
    kind: Literal["PodDisruptionBudget"]
    metadata: Metadata
    spec: BudgetSpec
