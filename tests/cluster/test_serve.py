"""The service on a real Ray Serve, behind its proxy, with two replicas and no driver."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stream_odml.client import Client, ServiceError
from stream_odml.cluster.runtime import free_port
from stream_odml.cluster.serve import ServiceDown, _deploy, build, start_service, stop_service
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import ConfigError
from tests.service.tiny_stream import TinyStream

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cpus")
def test_two_replicas_serve_every_commit_without_a_failed_query(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    ids = stream.land("a", ["cat", "dog", "owl"])
    options = ServiceOptions(port=free_port(), replicas=2, num_cpus=0.1, poll_s=0.05, wait_s=30)
    url = start_service(stream.root, options)
    with Client(url) as client:
        assert client.search_image(stream.images[ids[2]], k=1).hits[0].item_id == ids[2]
        _swaps_under_load(stream, url, ids)
        with pytest.raises(ServiceError, match="driver_away"):
            client.rollback(stream.head)
        found = sorted((Path(stream.root) / "metrics").glob("replica-*.json"))
        assert len(found) == 2
        for path in found:
            target = json.loads(path.read_text())[0]["targets"][0]
            with urllib.request.urlopen(f"http://{target}/metrics") as answer:
                assert f'version="{stream.head}"' in answer.read().decode()
    stop_service()
    assert not list((Path(stream.root) / "metrics").glob("replica-*.json"))
    stream.close()


def test_a_serve_config_names_the_stream_s_own_file(tmp_path: Path) -> None:
    (tmp_path / "stream.yaml").write_text("root: /data/root\nservice: {replicas: 3}\n")
    deployment = build({"config": str(tmp_path / "stream.yaml")})._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.init_args[0] == "/data/root"
    with pytest.raises(ConfigError, match="missing"):
        build({"config": str(tmp_path / "missing.yaml")})
    with pytest.raises(ValueError, match="give `config"):
        build({"root": "x"})


def _swaps_under_load(stream: TinyStream, url: str, ids: list[str]) -> None:
    problems: list[object] = []
    done = threading.Event()
    rng = np.random.default_rng(0)

    def ask() -> None:
        with Client(url, retries=0) as client:
            while not done.is_set():
                item = ids[int(rng.integers(len(ids)))]
                hit = client.search_image(stream.images[item], k=1).hits[0]
                if hit.item_id != item or abs(hit.score - 1) > 1e-3:
                    problems.append((item, hit))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for number in range(3):
            late = stream.land(f"more-{number}", [f"class {number}"])
            version = stream.stage()
            with Client(url) as client:  # read your own writes, whichever replica answers
                for _ in range(6):
                    answer = client.search_image(stream.images[late[0]], k=1, min_version=version)
                    assert (answer.version, answer.hits[0].item_id) == (version, late[0])
    finally:
        done.set()
        thread.join(timeout=60)
    assert not problems, problems[:3]


def test_a_replica_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "The deployment failed to start 3 times in a row.\nTraceback\nImportError: no module 'kornia'\n"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Deploying application s failed: Failed to update the deployments ['search'].")

    deployed = SimpleNamespace(deployments={"search": SimpleNamespace(message=message)})
    monkeypatch.setattr("ray.serve.run", fail)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"s": deployed}))
    with pytest.raises(ServiceDown, match="did not start: ImportError: no module 'kornia'; see logs/serve/"):
        _deploy(None, "s")
    monkeypatch.setattr("ray.serve.status", fail)
    with pytest.raises(ServiceDown, match="Failed to update the deployments"):
        _deploy(None, "s")
