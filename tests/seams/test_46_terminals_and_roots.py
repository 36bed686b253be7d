"""Seam 46: a command whose terminal goes ends as by Ctrl-C, with all that it started, and not under `nohup`. A second
run on a root learns that the first one has the root, not that somebody has its port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stream_odml.cluster.session import prepare
from stream_odml.store.errors import RootBusy
from tests.service.tiny_stream import TinyStream
from tests.service.vector_stream import vector_config


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_ends_the_command(tmp_path: Path, ignored: bool) -> None:
    stream = TinyStream(tmp_path)
    stream.land("one", ["cat"])
    stream.close()
    words = ["sync", stream.root, "--to", str(tmp_path / "copy"), "--every", "0.1", "--json"]
    command = [sys.executable, "-m", "stream_odml.cli.main", *words]
    of_nohup = signal.SIG_IGN if ignored else signal.SIG_DFL
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, of_nohup)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        os.kill(process.pid, signal.SIGHUP)
        if ignored:
            for _ in range(3):  # one may have been written before the signal came
                assert process.stdout.readline()
            process.terminate()
        assert process.wait(60) == 130


def test_a_root_in_use_is_reported_before_its_port(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RootBusy, match=f"is in use by 'test' \\(process {os.getpid()}\\)"):
            prepare(vector_config(stream.root, service={"port": port}))
    stream.close()
