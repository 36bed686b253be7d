"""How the service is deployed on Ray Serve; `test_vector_stream.py` has it running, with two replicas."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_odml.cluster.serve import ServiceDown, _deploy, build
from stream_odml.config.stream import ConfigError


def test_a_serve_config_names_the_stream_s_own_file(tmp_path: Path) -> None:
    (tmp_path / "stream.yaml").write_text("root: /data/root\nservice: {replicas: 3}\n")
    deployment = build({"config": str(tmp_path / "stream.yaml")})._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.init_args[0] == "/data/root"
    with pytest.raises(ConfigError, match="missing"):
        build({"config": str(tmp_path / "missing.yaml")})
    with pytest.raises(ValueError, match="give `config"):
        build({"root": "x"})


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
