"""Seam 15: a stream's own Ray, its proxy and its metrics listen on the loopback only, and Ray asks for a token.

What listens anywhere else was asked for by name, and is told in one warning. `test_vector_stream.py` in
`tests/cluster` looks at the sockets and files of a whole session.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stream_odml.cluster.exposure import exposed_listeners
from stream_odml.cluster.haproxy_config import restricted
from stream_odml.cluster.ray_start import own_token
from stream_odml.config.stream import parse_config

OPEN = """global
    stats socket /s/a mode 666 level admin expose-fd listeners
    stats timeout 30s
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter if { path /metrics }
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend app
listen stats
  bind *:8404
  stats enable
  stats uri /stats
"""


@pytest.mark.parametrize(
    ("host", "front"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::", "[::]")]
)
def test_only_the_front_listens_on_the_configured_host(host: str, front: str) -> None:
    lines = [line.strip() for line in restricted(OPEN, host).splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        f"bind {front}:8000",
        "bind 127.0.0.1:8404",
    ]
    assert not [
        line for line in lines if "prometheus" in line or line in ("stats enable", "stats uri /stats")
    ]
    assert "stats socket /s/a level admin expose-fd listeners mode 600" in lines
    assert restricted(restricted(OPEN, host), host) == restricted(OPEN, host)


def test_the_token_is_new_for_each_session_and_its_owner_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    tokens = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        reported = own_token(tmp_path / name)
        assert reported["RAY_AUTH_MODE"] == "token"
        path = Path(reported["RAY_AUTH_TOKEN_PATH"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        tokens.append(path.read_text())
    assert len({*tokens}) == 2
    assert min(map(len, tokens)) >= 32
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_what_is_opened_by_name_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert exposed_listeners(parse_config({}), is_local=True) is None
    config = parse_config({"service": {"host": "0.0.0.0"}, "metrics": {"host": "192.0.2.7"}})
    reported = exposed_listeners(config, is_local=True)
    assert reported is not None
    assert "0.0.0.0:8000, without a token" in reported
    assert "192.0.2.7" in reported
    assert "\n" not in reported
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_MODE=disabled" in (exposed_listeners(parse_config({}), is_local=True) or "")
