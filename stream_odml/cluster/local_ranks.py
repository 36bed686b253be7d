"""How the ranks of a training run find each other in a session that listens on this machine alone.

Protects: by default rank 0 opens a store on every interface, which takes keys from anybody, and tells the others its
address. Where all ranks are on one machine, a file of the session's own folder does as well.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

from stream_odml.cluster.haproxy_config import SESSION_VARIABLE


@dataclass
class LocalRanks(TorchConfig):
    """Ranks that meet in a file of the session which this process belongs to; by Ray's own way where there is none."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _MeetInFile


class _MeetInFile(_TorchBackend):
    """Runs in the controller of the training run, for each group of workers anew."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        folder = os.environ.get(SESSION_VARIABLE)
        if folder is None or worker_group.get_resources_per_worker().get("GPU"):
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        meeting = Path(folder) / f"ranks-{uuid.uuid4().hex}"
        calls = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend="gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method=meeting.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(calls)
