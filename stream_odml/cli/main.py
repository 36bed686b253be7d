"""The command line: `stream-odml --help`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from stream_odml import __version__
from stream_odml.cli import asking, changing, configuring, doctor, exchanging, running, upgrading
from stream_odml.cli.console import say, shown
from stream_odml.cli.errors import out
from stream_odml.cli.failures import ShortFormatter, message_of, tell_of_threads
from stream_odml.cli.help import add_commands
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
    # Also where a shell started us with SIGINT ignored, as it does in the background of a script.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    shows_traces = "--debug" in sys.argv
    if not shows_traces:
        tell_of_threads(_tell)
    try:
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


def _tell(message: str) -> None:
    err.print(Text.assemble(("error: ", "red"), shown(masked_text(message), keep="\n")), soft_wrap=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


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


for group in (configuring, running, asking, doctor, changing, upgrading, exchanging):
    group.register(app)
add_commands(app, "Begin", version)


if __name__ == "__main__":
    main()
