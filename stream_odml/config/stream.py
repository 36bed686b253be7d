"""The one configuration of a stream: a typed YAML file in which every mistake is named with its remedy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from stream_odml.config.gate import GateConfig
from stream_odml.config.masking import masked
from stream_odml.config.mistakes import OnceLoader, mistakes, yaml_problem
from stream_odml.config.observing import MetricsConfig, ObserveConfig
from stream_odml.config.renamed import with_new_names
from stream_odml.config.section import Section
from stream_odml.config.service import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, ServiceOptions
from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.learn.settings import METHODS, PRETRAINED, SOLVING_METHODS, EmbedderSpec, StageSettings
from stream_odml.storage.reading import check_prefix, scheme_of
from stream_odml.storage.regular import check_root, checked_path, machine_path


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line for each mistake."""


def _without_scheme(what: str, path: str) -> None:
    if machine_path(what, path) != path:
        raise ValueError(f"the {what} is a path; write it without file://")


class SourceConfig(Section):
    """Where shards of images come from."""

    kind: str = Field("directory", pattern=r"^(directory|s3|delta|iceberg|lance|kafka|none|[\w.]+:\w+)$")
    """`directory`, `s3` (a prefix), `delta`, `iceberg` and `lance` (a table, followed by version), `kafka` (topics),
    `none`: HTTP pushes only; or `module:function` of your own, see deploy/sources.md."""
    path: str = "inbox"
    """Folder, `bucket/prefix`, table, or topics separated by commas; a relative folder lies under the stream root."""
    poll_s: float = Field(0.5, gt=0, le=3600)
    """Seconds between two looks for new shards."""
    start_version: int = Field(0, ge=0, lt=2**63)
    """First version of a table (of an `iceberg` one: number of a snapshot) that is read, where older ones were cleaned
    out of it."""
    storage_options: dict[str, str] = Field(default_factory=dict)
    """Options of an object store as the Delta library names them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ..."""
    kafka: KafkaOptions = KafkaOptions()

    @model_validator(mode="after")
    def _folder_is_written_out(self) -> SourceConfig:
        if self.kind == "directory":
            if scheme_of(checked_path("inbox", self.path)) == "s3":
                raise ValueError(f"path {self.path!r} lies in an object store; write `kind: s3` beside it")
            _without_scheme("inbox", self.path)
        elif self.kind == "s3" and scheme_of(self.path) not in ("", "s3"):
            raise ValueError("path is in no store that is known; write s3://BUCKET/PREFIX")
        elif self.kind != "none" and not self.path.strip():
            raise ValueError(f"path is empty; say what of {self.kind} is read, or name `kind: none`")
        return self


class IngestConfig(Section):
    """How landed shards become searchable."""

    max_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1024, le=LARGEST_MAX_PIXELS)
    """An image that declares more pixels is refused before it is decoded: when it is pushed, sent as a query, indexed
    or learnt from. Above 178 million Pillow refuses by itself."""
    tries: int = Field(3, ge=1, le=100)
    """Attempts at a shard that ends its process, or hangs it; then the shard is dead-lettered."""
    hang_s: float = Field(600.0, gt=0, le=86_400)
    """Seconds without progress after which an indexer (by one image) or a reader of a task's images (by 256) is ended.
    Keep it above the time of one read from a slow object store with all its retries, some four minutes."""
    batch_shards: int = Field(64, ge=1, le=10_000)
    """Maximum shards per commit."""
    batch_bytes: int = Field(64 << 20, ge=1 << 16)
    """Maximum bytes of the shards that an indexer gets at once."""
    batch_rows: int = Field(20_000, ge=1)
    """Images after which an indexer returns what it has; shards that it has not started are dispatched again."""
    thumbnails: bool = False
    """Store a thumbnail of every item for the page, at the model's input size."""


class EvaluationConfig(Section):
    """Held-out images, never learnt from."""

    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of each class's images that is held out, and kept, to measure recall."""
    max_per_class: int = Field(20, ge=2)
    """Maximum held-out images per class that an evaluation reads."""
    max_images: int = Field(20_000, ge=100)
    """Maximum held-out images in all. Beyond it, classes are drawn by `seed`: half of the images for the task's own."""


class ClusterConfig(Section):
    """What runs where, in Ray's logical CPUs and GPUs."""

    address: str | None = None
    """Address of a running Ray cluster (`auto`, `ray://...`); by default a local one is started."""
    cpus: float | None = Field(None, gt=0)
    """CPUs of the local cluster; by default those of this machine."""
    workers: int = Field(2, ge=1, le=4096)
    """Data-parallel training workers."""
    min_workers: int | None = Field(None, ge=1)
    """Minimum training workers: with fewer free CPUs or GPUs than `workers` need, training continues with these."""
    cpus_per_worker: float = Field(0.4, gt=0)
    """CPUs reserved per training worker."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs per training worker; 0 trains on CPU."""
    indexers: int = Field(1, ge=1, le=1024)
    """Processes that embed landed shards."""
    cpus_per_indexer: float = Field(0.2, gt=0)
    """CPUs reserved per indexer."""
    gpus_per_indexer: float = Field(0.0, ge=0)
    """GPUs per indexer, also a fraction."""
    cpus_per_read: float = Field(0.2, gt=0)
    """CPUs per Ray Data task that decodes a shard."""
    serve: bool = True
    """Start the search service with the stream; off where a RayService of its own serves the root."""
    checkpoint_s: float = Field(20.0, gt=0)
    """Seconds between two checkpoints within a stage."""
    cache_dir: Path | None = None
    """Folder, on each node, of the decoded pixels of the task in progress."""
    worker_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that training workers must run on; `service.labels` are those of the replicas."""
    indexer_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that indexers must run on."""

    @model_validator(mode="after")
    def _workers_in_order(self) -> ClusterConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above workers {self.workers}; lower it, or raise workers"
            )
        return self


class StoreConfig(Section):
    """The stream root: tables and artifacts."""

    options: dict[str, str] = Field(default_factory=dict)
    """Options of an object store, as the Delta library names them."""
    features: Literal["auto", "exact", "embedding"] = "auto"
    """What the gallery keeps of an item, settled when the root is made. `exact`: the trunk's pooled features, from
    which every head's embedding follows without an error; `embedding`: the embedding itself, which drift maps move.
    `auto`: `exact` with `model.head: discriminant`, which has no other, and `embedding` with every other head."""
    codes: Literal["int8", "float16"] = "int8"
    """How features are kept, settled when the root is made: 1 byte a value and 4 for each item, or 2 and 4. Recall was
    within 0.001 of float32 with `int8` on every stream tried."""
    renew_per_s: float = Field(50.0, ge=0, le=100_000)
    """Images a second that are embedded anew in the background, after the trunk of a discriminant head moved and while
    the trainer has nothing else to do: items become exact again that a map had moved, worst first, where the image can
    still be read. 0 for none."""
    lease_s: float = Field(10.0, ge=1, le=600)
    """Seconds after a writer's last heartbeat until another may replace it."""
    keep_versions: int = Field(10, ge=2)
    """Versions behind the head that rollback can reach."""
    retention_h: float = Field(1.0, ge=0, le=87_600)
    """Hours until replaced table files, and log commits before a checkpoint, are deleted."""
    maintain_every_rows: int = Field(2000, ge=10)
    """New ledger rows between two rounds of compaction and deletion."""
    maintain_every_commits: int = Field(256, ge=10)
    """Commits to all tables between two rounds, where rows are few: each commit makes files, however small."""
    keep_pushed_h: float = Field(168.0, ge=0, le=876_000)
    """Hours that images pushed over HTTP, or copied from a topic, stay after they are learnt: a rollback, or a later
    stage of the trunk, may need them again."""


class StreamConfig(Section):
    """Everything about one stream."""

    name: str = Field("stream", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    """Name of the stream, in logs and metrics."""
    root: str = "stream-root"
    """Folder or object-store prefix that holds all state."""
    seed: int = Field(0, ge=0, lt=2**31)
    """The one seed of initialisation, sampling and augmentation."""
    method: str = Field("ours", json_schema_extra={"enum": list(METHODS)})
    """Named settings of `learning`; keys given there win. `ours` learns the first task by its images and solves the
    head of all others in seconds (`model.head: discriminant`); a root that stores embeddings, as earlier releases made
    them, goes on with the head that it was made with. `distilled` learns every task by mutual distillation."""
    source: SourceConfig = SourceConfig()
    model: EmbedderSpec = EmbedderSpec(head="discriminant")
    learning: StageSettings = StageSettings()
    boundary: BoundaryPolicy = BoundaryPolicy()
    ingest: IngestConfig = IngestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    store: StoreConfig = StoreConfig()
    cluster: ClusterConfig = ClusterConfig()
    service: ServiceOptions = ServiceOptions()
    metrics: MetricsConfig = MetricsConfig()
    observe: ObserveConfig = ObserveConfig()

    @field_validator("root")
    @classmethod
    def _root_can_hold_tables(cls, root: str) -> str:
        if scheme_of(root):
            check_prefix(root)
        else:
            check_root(root)
        return root

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"expected one of {', '.join(map(repr, METHODS))}")
        return method

    @model_validator(mode="before")
    @classmethod
    def _apply_method(cls, data: Any) -> Any:
        """Lay `learning` over the settings of `method`, and those over the rates for pretrained weights; and `model`
        over the head of `method`."""
        if not _has_sections(data, "learning"):
            return data
        method, model = str(data.get("method", "ours")), data.get("model", {})
        changes = METHODS.get(method, {})
        if isinstance(model, Mapping):
            head = "discriminant" if method in SOLVING_METHODS else "linear"
            data = {**data, "model": {"head": head, **model}}
        learnt = isinstance(model, Mapping) and bool(model.get("weights") or model.get("pretrained"))
        rates = PRETRAINED if learnt else {}
        return {**data, "learning": {**rates, **changes, **data.get("learning", {})}}

    @model_validator(mode="before")
    @classmethod
    def _share_pixel_limit(cls, data: Any) -> Any:
        """Copy `ingest.max_pixels` to the service, so that every way in has one limit."""
        if not _has_sections(data, "ingest", "service"):
            return data
        service = data.get("service", {})
        limit = data.get("ingest", {}).get("max_pixels", DEFAULT_MAX_PIXELS)
        if "max_pixels" in service and service["max_pixels"] != limit:
            raise ValueError(
                f"service.max_pixels {service['max_pixels']} differs from ingest.max_pixels {limit}; "
                "set ingest.max_pixels alone, it holds for the service too"
            )
        return {**data, "service": {**service, "max_pixels": limit}}

    @model_validator(mode="after")
    def _head_and_trunk_fit(self) -> StreamConfig:
        solved, features = self.model.head == "discriminant", self.store.features
        if features != "auto" and solved != (features == "exact"):
            raise ValueError(
                f"store.features: {features} with model.head: {self.model.head}; a discriminant head needs `exact`, "
                "every other head `embedding`: leave store.features out"
            )
        if self.model.weights is not None:
            _without_scheme("file model.weights", self.model.weights)
        if self.learning.trunk == "distilled" and self.model.takes_vectors:
            raise ValueError(
                "learning.trunk: distilled with model.backbone: none: vectors come without a trunk that could move; "
                "leave learning.trunk out"
            )
        if self.learning.trunk == "frozen" and not solved:
            raise ValueError(
                f"learning.trunk: frozen with model.head: {self.model.head}, which is learnt with its trunk; "
                "use `method: frozen_f0`, or `model.head: discriminant`"
            )
        return self

    @property
    def solves_head(self) -> bool:
        """Whether the head is solved from sums, and the gallery stores the features of its trunk."""
        return self.model.head == "discriminant"

    @property
    def held_out_set(self) -> str:
        """The share of images that is held out, and a digest of all that decides which of them are measured: figures
        of two sets are of different images."""
        rule = [*self.evaluation.model_dump().values(), self.seed]
        digest = hashlib.sha256(json.dumps(rule).encode()).hexdigest()
        return f"{self.evaluation.held_out:g}-{digest[:8]}"

    @property
    def learns_trunk(self) -> bool:
        """Whether the first task is learnt step by step: weights from nothing are worth nothing until then."""
        if self.model.takes_vectors:
            return False
        return self.learning.trunk != "frozen" or not self.model.starts_pretrained

    @property
    def storage_options(self) -> dict[str, str] | None:
        """Return the options of the store, or None for a local root."""
        return dict(self.store.options) or None


def _has_sections(data: Any, *names: str) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(name, {}), Mapping) for name in names)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> StreamConfig:
    """Read a YAML file. Raises ConfigError with one line per mistake, each with what was expected, and no secret."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), OnceLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {yaml_problem(error)}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected keys such as `root: my-stream`")
    # A section of which every line is commented out is one with its defaults.
    filled = {name: part for name, part in data.items() if part is not None or not _is_section(name)}
    return parse_config(_merge(filled, overrides or {}), str(path))


def _is_section(name: str) -> bool:
    field = StreamConfig.model_fields.get(name)
    kind = None if field is None else field.annotation
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))


def parse_config(data: Mapping[str, Any], where: str = "config") -> StreamConfig:
    """Validate plain data. Raises ConfigError with every mistake: one does not hide another."""
    data = with_new_names(data)
    found = mistakes(StreamConfig, data)
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ConfigError(f"{where} has {len(found)} mistake(s):{lines}")
    return StreamConfig.model_validate(data)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def shown_json(config: StreamConfig) -> str:
    """Return the whole configuration as JSON with masked secrets, for display."""
    return json.dumps(masked(config.model_dump(mode="json")), indent=2)


def schema_json() -> str:
    """Return the JSON schema of a configuration file."""
    schema = StreamConfig.model_json_schema()
    # Where none is named it is the method's, which no schema can say.
    del schema["$defs"]["EmbedderSpec"]["properties"]["head"]["default"]
    return json.dumps(schema, indent=2)


def example_yaml() -> str:
    """Return a configuration file with every field at its default, each after its description and its range."""
    schema = StreamConfig.model_json_schema()
    values = StreamConfig().model_dump(mode="json")
    return "\n".join(_annotate(schema, schema["properties"], values, "")) + "\n"


def _annotate(
    schema: Mapping[str, Any], properties: Mapping[str, Any], values: Mapping[str, Any], indent: str
) -> Iterator[str]:
    for name, spec in properties.items():
        if (target := spec.get("$ref")) is None:
            yield f"{indent}# {_one_line(spec.get('description', ''))}{field_range(spec)}"
            yield f"{indent}{name}: {json.dumps(values[name])}"
            continue
        section = schema["$defs"][target.rsplit("/", 1)[1]]
        yield f"\n{indent}# {_one_line(section.get('description', ''))}"
        yield f"{indent}{name}:"
        yield from _annotate(schema, section["properties"], values[name], indent + "  ")


def _one_line(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def field_range(spec: Mapping[str, Any]) -> str:
    """Return the choices and bounds of a field, from its JSON schema."""
    known = {name: bound for of in reversed([spec, *spec.get("anyOf", [])]) for name, bound in of.items()}
    bounds = [f"{sign} {known[name]:.12g}" for name, sign in _SIGNS.items() if name in known]
    choices = f"one of {', '.join(map(str, spec['enum']))}" if spec.get("enum") else ""
    return "".join(f" ({part})" for part in (choices, ", ".join(bounds)) if part)
