"""Seam 23: what a configuration holds of secrets is shown to nobody, neither by `config --show` nor in an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_odml.cli import main as cli
from stream_odml.cli import stream_root
from stream_odml.config.masking import masked_text
from stream_odml.config.stream import ConfigError, load_config, parse_config, shown_json
from stream_odml.observe.plain import plain
from stream_odml.store.store import Store
from tests.service.tiny_stream import TinyStream

SECRET = "hunter2hunter2"


def _check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["stream-odml", "config", "--show", str(path)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


RIGHT: list[dict[str, Any]] = [
    {"store": {"options": {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu", "anything": SECRET}}},
    {"source": {"kind": "s3", "storage_options": {"AWS_ACCESS_KEY_ID": SECRET, "x": f"http://{SECRET}"}}},
    {"root": f"s3://key:{SECRET}@bucket/root"},
    {"source": {"kind": "delta", "path": f"https://user:{SECRET}@host/in?version=1"}},
    {"source": {"kind": "delta", "path": f"https://{SECRET}@host/in"}},
    {"source": {"kind": "delta", "path": f"https://host/in?X-Amz-Signature={SECRET}&b=1"}},
    {"service": {"push_dir": f"s3://key:p@{SECRET}@bucket"}},
    {"service": {"token_env": SECRET}},
    {"cluster": {"address": f"ray://u:{SECRET}@head:10001"}},
]  # fmt: skip


@pytest.mark.parametrize("data", RIGHT)
def test_show_masks_secrets_and_shows_the_rest(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(data))
    code, said = _check(monkeypatch, capsys, path)
    assert code == 0, said
    assert SECRET not in said
    assert "***" in said
    reported = json.loads(said)
    assert reported["seed"] == 0
    assert reported["service"]["token_env"] in ("STREAM_ODML_TOKEN", "***")
    assert json.loads(load_config(path).model_dump_json()) != reported, "what runs is not masked"


def test_without_secrets_it_is_the_configuration() -> None:
    config = parse_config({"root": "s3://bucket/root", "service": {"token_file": "/run/token"}})
    assert json.loads(shown_json(config)) == json.loads(config.model_dump_json())


WRONG = [
    f"store: {{options: {{AWS_SECRET_ACCESS_KEY: [{SECRET}]}}, lease_s: x}}",
    f"store: {{options: AWS_SECRET_ACCESS_KEY={SECRET}}}",
    f"store: {{options: {{AWS_SECRET_ACCESS_KEY={SECRET}: }}}}",
    f"source: {{storage_options: {{KEY={SECRET}: }}}}",
    "source: {storage_options: {SECRET: 987654321}}",
    f"source: s3://key:{SECRET}@bucket",
    f"seed: https://user:{SECRET}@host",
    f"store:\n  options:\n    AWS_SECRET_ACCESS_KEY: {SECRET}: x\n",
    f"store:\n  options: {{AWS_SECRET_ACCESS_KEY: '{SECRET}\n",
    f"token: {SECRET}",
    f"service: {{token: {SECRET}, port: -1}}",
    f"service: {{token_file: [{SECRET}]}}",
    f"service: {{read_token: {SECRET}}}",
    f"service: {{push_dir: 'https://user:{SECRET}@host/in'}}",
    f"source: {{path: 'https://user:{SECRET}@host/in'}}",
    f"root: [s3://key:{SECRET}@bucket]",
    f"name: 'https://x:{SECRET}@y'",
]


@pytest.mark.parametrize("text", WRONG)
def test_errors_hold_no_secret(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(text)
    code, said = _check(monkeypatch, capsys, path)
    assert code == 1
    assert SECRET not in said
    assert "987654321" not in said
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "text", ["s3://bucket/push@2x", "http://127.0.0.1:8265", "did you mean `token_file`?", "a: b", "user@host", "abfss://c@acc",
             "send the header 'Authorization: Bearer TOKEN'", "service.token_env: unknown key", "{'class': 'b'}"]
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked_text(text) == text


def test_any_error_of_the_command_line_masks_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stream-odml", "status", f"ftp://me:{SECRET}@host/root"])
    with pytest.raises(SystemExit):
        cli.main()
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"authorization: bearer {SECRET}",
        f"{{'aws_secret_access_key': '{SECRET}', 'region': 'eu'}}",
        f'{{"password":"{SECRET}"}}',
        f"x-api-key={SECRET}",
    ],
)
def test_secrets_in_the_forms_that_libraries_print(text: str) -> None:
    assert SECRET not in masked_text(text)
    assert "eu" in masked_text(text) or "eu" not in text


def test_status_shows_a_root_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"s3://key:{SECRET}@bucket/root"
    stream = TinyStream(tmp_path)
    stream.land("first", ["oak"])
    opened = Store.open(stream.root)
    monkeypatch.setattr(opened, "uri", root)
    monkeypatch.setattr(Store, "open", lambda *_, **__: opened)
    assert SECRET not in json.dumps(plain(stream_root.root_status(stream.root)))
    stream.writer.release()
