"""The command line: `stream-odml --help`."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from stream_odml import __version__
from stream_odml.cli import asking, changing, configuring, exchanging, running
from stream_odml.cli.console import say, shown
from stream_odml.cli.failures import ShortFormatter, message_of, tell_of_threads
from stream_odml.cli.options import check_paths, out
from stream_odml.config.masking import masked_text
from stream_odml.observe.logs import TextFormatter

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Streaming continual metric learning: new categories land, are searchable in seconds, are learnt without "
    "forgetting, and are served without a pause.",
    epilog="See it run: stream-odml demo. Your own images: stream-odml init photos/. "
    "What a command does: stream-odml COMMAND --help.",
)
err = Console(stderr=True)


def main() -> None:
    """Run the command line: a failure of any kind becomes one message and exit code 1, an interrupt 130."""
    # Also where a shell started us with SIGINT ignored, as it does in the background of a script. A terminal that goes
    # ends a command as Ctrl-C does, and all that it has started; not under `nohup`.
    hangs_up = signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])):
        signal.signal(number, signal.default_int_handler)
    shows_traces = "--debug" in sys.argv
    if not shows_traces:
        tell_of_threads(_tell)
    try:
        _check_folder()
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        if shows_traces:
            raise
        _tell(message_of(error))
        sys.exit(1)


def _check_folder() -> None:
    """Raise FileNotFoundError where the working folder was deleted: libraries end the process for want of one."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the working folder was deleted; change to another one with cd") from None


def _tell(message: str) -> None:
    err.print(Text.assemble(("error: ", "red"), shown(masked_text(message), keep="\n")), soft_wrap=True)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Log more, and show the trace of an error.")] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if debug else ShortFormatter())
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, handlers=[handler])
    logging.getLogger("stream_odml.cluster.exposure").setLevel(logging.WARNING)
    if not debug:
        # Else each retry without a network is told, twice over; what it comes to is in the error.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def version() -> None:
    """Print the version."""
    say(out, __version__)


def help_text(docstring: str) -> str:
    """Return a docstring with each paragraph as one line. Examples, divided by a dot in the middle of the line, or each
    after a word of its own, come one a line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip()))
    return "\n\n".join(_examples(part) if re.match(r"Examples?:\s", part) else part for part in paragraphs)


def _examples(paragraph: str) -> str:
    commands = re.split(r"\s+·\s+|\s*Examples?:\s+", paragraph)
    # Not indented: typer takes the indentation away where no other paragraph stands before them.
    return "\n".join(["Examples:", *(command.strip() for command in commands if command.strip())])


_PANELS: tuple[tuple[str, tuple[Callable[..., Any], ...]], ...] = (
    ("Begin", (configuring.init, configuring.config, version)),
    ("Run", (running.demo, running.run, running.submit, running.stop)),
    ("Look", (asking.query, asking.status, asking.versions, asking.quarantine, asking.report, asking.doctor)),
    ("Change", (changing.ingest, changing.rollback, changing.relearn, changing.forget, changing.backup)),
    ("Change", (exchanging.upgrade,)),
    ("Exchange with other stores", (exchanging.adopt, exchanging.export, exchanging.sync)),
)
for _panel, _commands in _PANELS:
    for _command in _commands:
        check_paths(_command)
        _text = help_text(inspect.getdoc(_command) or "")
        _short = re.split(r"(?<=\.)\s", _text, maxsplit=1)[0].strip()
        app.command(help=_text, short_help=_short, rich_help_panel=_panel)(_command)


if __name__ == "__main__":
    main()
