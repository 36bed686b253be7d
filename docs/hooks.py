"""Pages that are generated when the documentation is built: what the code says is written once, in the code.

The reference comes from typer, pydantic, OpenAPI and the `raise` statements; the method from `stream_odml/learn`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import typer.main
from pydantic import TypeAdapter

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "stream_odml"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


# Commands


def command_line() -> dict[str, click.Command]:
    """Return every command by its name."""
    from stream_odml.cli.main import app

    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    return dict(group.commands)


def commands_page() -> str:
    """Return the reference of the command line."""
    parts = [
        "# Commands",
        "`stream-odml --debug COMMAND` logs more and shows the trace of an error. An error ends with exit code 1, an "
        "interrupt with 130.",
    ]
    for name, command in command_line().items():
        parts += [f"## stream-odml {name}", *_help(command.help or "")]
        if command.params:
            parts.append("\n".join(["| option | meaning |", "|---|---|", *map(_option, command.params)]))
    return "\n\n".join(parts) + "\n"


def _help(text: str) -> Iterator[str]:
    for paragraph in text.replace("\b", "").strip().split("\n\n"):
        title, _, examples = paragraph.partition("\n")
        is_list = title == "Examples:"
        yield "\n".join(f"    {one}" for one in examples.splitlines()) if is_list else _text(paragraph)


def _option(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = parameter.name.upper() if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    text = _cell(parameter.help or "")
    default = parameter.default
    if (
        not argument
        and default not in (None, False, ())
        and not callable(default)
        and "UNSET" not in repr(default)
    ):
        text += f" Default: `{default}`."
    if argument and parameter.required:
        text += " Required."
    if envvar := getattr(parameter, "envvar", None):
        text += f" Or the environment: `{envvar}`."
    return f"| `{names}` | {text} |"


# Configuration


def configuration_page() -> str:
    """Return the reference of the configuration, section by section."""
    from stream_odml.config.stream import StreamConfig

    schema = StreamConfig.model_json_schema()
    defaults = StreamConfig().model_dump(mode="json")
    top, sections = [], []
    for name, spec in schema["properties"].items():
        target = _target(spec)
        if target is None:
            top.append(_field(name, spec, defaults[name]))
            continue
        sections += _section(schema, name, target, defaults[name])
    head = (
        "# Configuration\n\nOne YAML file, every key of which has a default: `stream-odml config --example` prints it "
        "with all of them, `stream-odml init` writes a short one for your images, `stream-odml config --check FILE` "
        "looks whether this machine has what it asks for."
    )
    return "\n\n".join([head, _table(top), *sections]) + "\n"


def _section(schema: Mapping[str, Any], name: str, target: str, defaults: Mapping[str, Any]) -> list[str]:
    """Return the heading, the text and the table of a section, and behind it those of sections within it."""
    section = schema["$defs"][target]
    rows, inner = [], []
    for key, spec in section["properties"].items():
        if (deeper := _target(spec)) is None:
            rows.append(_field(key, spec, defaults[key]))
        else:
            rows.append(f"| `{key}` | | a section: see [{name}.{key}](#{name}{key}) |")
            inner += _section(schema, f"{name}.{key}", deeper, defaults[key])
    return [f"## {name}", _text(section.get("description", "")), _table(rows), *inner]


def _target(spec: Mapping[str, Any]) -> str | None:
    found = spec.get("$ref") or next((one["$ref"] for one in spec.get("allOf", []) if "$ref" in one), None)
    return None if found is None else str(found).rsplit("/", 1)[1]


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _field(name: str, spec: Mapping[str, Any], default: Any) -> str:
    from stream_odml.config.stream import field_range

    written = TypeAdapter(Any).dump_json(default).decode()
    return f"| `{name}` | `{written}` | {_cell(spec.get('description', '') + field_range(spec))} |"


# HTTP


def http_page() -> str:
    """Return the reference of the HTTP API."""
    described = openapi()
    parts = [
        "# HTTP API",
        "A running service shows the same at `/docs`, where each request can be tried, and as `/openapi.json`. Errors "
        "are JSON with `error`, `detail` and `remedy`. Every answer names its stream in `X-Stream-Id`.",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## {method.upper()} {path}".replace("{", "\\{"))
            parts.append(_text(operation.get("description") or operation.get("summary", "")))
            if parameters := operation.get("parameters"):
                rows = [
                    f"| `{one['name']}` | {one['in']} | {_cell(one.get('description', ''))} |"
                    for one in parameters
                ]
                parts.append("\n".join(["| parameter | in | meaning |", "|---|---|---|", *rows]))
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                parts.append(f"Body `{kind}`: {_shape(body.get('schema', {}))}")
            for status, answer in operation.get("responses", {}).items():
                for body in answer.get("content", {}).values():
                    parts.append(f"Answer {status}: {_shape(body.get('schema', {}))}")
    return "\n\n".join(part for part in parts if part) + "\n"


def openapi() -> dict[str, Any]:
    """Return the description of the API, as a running service gives it."""
    from stream_odml.config.service import ServiceOptions
    from stream_odml.service.api import create_app

    backend: Any = SimpleNamespace(stream_id=lambda: None)  # nothing is asked of it to describe the API
    described: dict[str, Any] = create_app(backend, ServiceOptions()).openapi()
    return described


def _shape(schema: Mapping[str, Any], depth: int = 0) -> str:
    if "properties" in schema:
        return ", ".join(
            f"`{name}`" + (f" ({_shape(sub, depth + 1)})" if depth < 2 and _is_nested(sub) else "")
            for name, sub in schema["properties"].items()
        )
    if "items" in schema:
        return f"a list of {_shape(schema['items'], depth + 1)}"
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[1]}`"
    return str(schema.get("type", "a value"))


def _is_nested(schema: Mapping[str, Any]) -> bool:
    return "properties" in schema or "properties" in schema.get("items", {})


# Errors

ROOMS = {
    "cli": "Commands",
    "config": "The configuration",
    "cluster": "Ray, ports and resources",
    "ingest": "Landing images",
    "storage": "Files and object stores",
    "store": "The stream root",
    "pipeline": "Tasks, stages and sources",
    "search": "Searching",
    "service": "The service",
    "client": "The client",
    "exchange": "Galleries of other stores",
    "models": "Models",
    "notebook": "Streams from Python",
    "learn": "Model and learning",
    "observe": "Logs, traces and metrics",
}


def errors_page() -> str:
    """Return every message of an error in the package, with what the message itself advises."""
    parts = [
        "# Errors",
        "Every message that the package can print as an error, out of its source; `…` stands for the value seen. The "
        "part behind the semicolon is the remedy. [Troubleshooting](../howto/troubleshooting.md) explains those that "
        "a first run may meet.",
    ]
    for room, title in ROOMS.items():
        rows = sorted(set(messages(room)))
        if rows:
            parts += [
                f"## {title}",
                "\n".join(["| error | message |", "|---|---|", *(_error(*row) for row in rows)]),
            ]
    return "\n\n".join(parts) + "\n"


@cache
def messages(room: str) -> tuple[tuple[str, str], ...]:
    """Return name and text of each error that a package raises with words of its own."""
    return tuple(_messages(room))


def _messages(room: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each error that a package raises with words of its own."""
    for name, text, _ in raised(room):
        if text:
            yield name, text


SILENT = ("AssertionError", "NotImplementedError", "ClientDisconnect", "Exit", "KeyboardInterrupt")
"""What is raised and says nothing to a person."""


def raised(room: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, text and place of what a package raises by a call; no text where the words are another's."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        nodes = _nodes(path)
        texts = {**_returned_texts(), **_named_texts(nodes)}
        for node in nodes:
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).rpartition(".")[2] or ast.unparse(node.exc.func)
                made, said = _returned_texts().get(name, ""), _said(node.exc, texts)
                text = _longest((made, said))
                if name not in SILENT:
                    yield name, text if _has_words(text) else "", f"{path.relative_to(PACKAGE)}:{node.lineno}"


def _has_words(text: str) -> bool:
    return " " in text.replace("…", "").strip(" :;()")


def _longest(texts: Iterable[str]) -> str:
    return max(texts, key=lambda text: (_has_words(text), len(text)), default="")


@cache
def _nodes(path: Path) -> list[ast.AST]:
    source = path.read_text(encoding="utf-8")
    return list(ast.walk(ast.parse(source)))


@cache
def _returned_texts() -> Mapping[str, str]:
    """Return what functions of the package return as a text, or as an error with a text, by their names."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in _nodes(path):
            if isinstance(node, ast.FunctionDef):
                text = _returned(node)
                found[node.name] = _longest((found.get(node.name, ""), text))
    return found


def _returned(function: ast.FunctionDef) -> str:
    values = [one.value for one in ast.walk(function) if isinstance(one, ast.Return) and one.value]
    errors = [one for one in values if isinstance(one, ast.Call)]
    texts = {
        one.targets[0].id: _template(one.value)
        for one in ast.walk(function)
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    }
    return _longest([*map(_template, values), *(_said(one, texts) for one in errors)])


def _said(call: ast.Call, texts: Mapping[str, str]) -> str:
    """Return the longest text among what an error is made of."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return _longest(_template(one) or texts.get(_name(one), "") for one in given)


def _named_texts(nodes: list[ast.AST]) -> dict[str, str]:
    """Return texts that have a name in their file: what is assigned, and what a function returns."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _template(node.value)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = _returned(node)
    return found


def _name(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    if isinstance(called, ast.Attribute) and called.attr == "join" and isinstance(node, ast.Call):
        called = node.args[0]  # "; ".join(parts), or of those of them that are there
        called = called.generators[0].iter if isinstance(called, ast.GeneratorExp) else called
    return called.id if isinstance(called, ast.Name) else ""


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    if isinstance(node, ast.IfExp):
        return _longest((_template(node.body), _template(node.orelse)))
    if isinstance(node, ast.List):
        return "; ".join(filter(None, map(_template, node.elts)))
    if isinstance(node, ast.BoolOp):
        return _longest(map(_template, node.values))
    return ""


def _error(name: str, text: str) -> str:
    return f"| {name} | {_cell(' '.join(text.split()))} |"


def quarantine_page() -> str:
    """Return every reason for which a row is refused."""
    from stream_odml.ingest.reasons import REMEDIES

    rows = [f"| `{reason.value}` | {_cell(remedy)} |" for reason, remedy in REMEDIES.items()]
    return (
        "# Rows that are refused\n\nA row that cannot be used goes to quarantine with a reason and the file that it "
        "came from; the good rows of its shard are used. `stream-odml quarantine ROOT` lists them, `--export` gives "
        "them back to be fixed.\n\n"
        + "\n".join(["| reason | what is wrong, and what to do |", "|---|---|", *rows])
        + "\n"
    )


# Pages that lie elsewhere


def beside(path: str) -> Callable[[], str]:
    """Return what makes a page of a file that lies beside its code; links to files of the repository become names."""

    def page() -> str:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        return re.sub(r"\[`?([^\]`]+)`?\]\((?!https?://|#)[^)]+\)", r"`\1`", text)

    return page


def _text(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|").replace("<", "&lt;")


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/configuration.md": configuration_page,
    "reference/http.md": http_page,
    "reference/errors.md": errors_page,
    "reference/quarantine.md": quarantine_page,
    "method.md": beside("stream_odml/learn/README.md"),
    "howto/operate.md": beside("deploy/README.md"),
    "howto/sources.md": beside("deploy/sources.md"),
    "howto/kafka.md": beside("deploy/kafka.md"),
}
