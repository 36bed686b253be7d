"""Ranks on one machine meet in a file of their session: nobody else reaches what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from stream_odml.cluster.haproxy_config import SESSION_VARIABLE
from stream_odml.cluster.local_ranks import LocalRanks
from tests.killed import SERVER
from tests.seams.sessions import Served


class OneWorker:
    """A group of one worker, which is this process."""

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def execute(self, call: Callable[..., object]) -> None:
        """Set nothing: only a worker of Ray Train knows its ranks."""

    def execute_single_async(self, rank: int, call: Callable[..., object], **arguments: Any) -> object:
        return call(**arguments)

    def __len__(self) -> int:
        return 1


def _meet(folder: str, found: Any) -> None:
    os.environ[SESSION_VARIABLE] = folder
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ray.get = lambda calls: calls
    config = LocalRanks()
    config.backend_cls().on_start(OneWorker(), config)
    total = torch.ones(2)
    dist.all_reduce(total)
    session = Served("", os.getpid(), "", Path(folder), "")
    found.put((total.tolist(), [at for at, _, _ in session.listeners()], sorted(os.listdir(folder))))
    dist.destroy_process_group()
    os._exit(0)  # see `tests/learn/test_world.py`


@pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="NOT CHECKED: needs Linux, which lists the sockets"
)
def test_a_rank_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    found = SERVER.SimpleQueue()
    process = SERVER.Process(target=_meet, args=(str(tmp_path), found))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    total, listening, files = found.get()
    assert total == [1.0, 1.0]
    assert {at.startswith("127.") for at in listening} <= {True}, listening
    assert [name.startswith("ranks-") for name in files] == [True]
