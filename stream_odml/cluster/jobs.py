"""Streams as jobs of a Ray cluster: submitted with a working directory that holds one file, the configuration."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from stream_odml.cluster.ray_compat import has_no_job_agent
from stream_odml.config.stream import ConfigError, StreamConfig, load_config
from stream_odml.storage.reading import scheme_of
from stream_odml.wording import first_line

CONFIG_NAME = "stream.yaml"
SETTLE_S = 60.0
STOP_S = 120
"""Ray kills a job 3 s after asking it to stop, by default; draining a stage and the service takes longer."""


class JobUnreachable(RuntimeError):
    """The cluster's job server does not answer, or refuses us."""


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the job server at `address` (http://head:8265; None: RAY_ADDRESS or a local cluster). A
    token is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Raises JobUnreachable."""
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise JobUnreachable(
            f"no job server answers at {address or 'the default address'} ({first_line(error)}); start the cluster "
            "with its dashboard, and set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN if it asks for a token"
        ) from error


def submit(
    config: Path, address: str | None, until_idle_s: float | None, job_id: str | None
) -> tuple[JobSubmissionClient, str]:
    """Submit `stream-odml run` for `config`; returns the client and the job's id. Raises ConfigError."""
    check_paths(load_config(config))  # a mistake is cheaper here than in a job's log
    client = connect(address)
    idle = f" --until-idle {until_idle_s:g}" if until_idle_s is not None else ""
    command = f"stream-odml run {CONFIG_NAME} --address auto{idle}"
    deadline = time.monotonic() + SETTLE_S
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(config, Path(folder) / CONFIG_NAME)
        runs_in = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}}
        while True:
            try:
                job = client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=runs_in)
                return client, str(job)
            except RuntimeError as error:
                # A cluster that has just started has no agent for jobs yet.
                if not has_no_job_agent(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)


def check_paths(config: StreamConfig) -> None:
    """Raise ConfigError for a root that would lie in the job's own working directory, which ends with the job."""
    if not scheme_of(config.root) and not Path(config.root).is_absolute():
        raise ConfigError(
            f"root {config.root!r} is relative: a job would keep it in a temporary folder of one node; "
            "give an absolute path on storage that every node sees, or an object-store prefix"
        )


def follow(client: JobSubmissionClient, job_id: str, show: Callable[[str], None]) -> int:
    """Show the job's log until it ends; its exit code, 0 if it was stopped, 1 if it never came to run."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            show(text)

    asyncio.run(tail())
    status = settled(client, job_id)
    if status in (JobStatus.SUCCEEDED, JobStatus.STOPPED):
        return 0
    return client.get_job_info(job_id).driver_exit_code or 1


def stop(client: JobSubmissionClient, job_id: str) -> JobStatus:
    """Stop a job and wait until it has ended. The stream can be submitted again and goes on."""
    client.stop_job(job_id)
    status = settled(client, job_id, STOP_S + SETTLE_S)
    if not status.is_terminal():
        raise RuntimeError(
            f"{job_id} is still {status.value.lower()} after {STOP_S + SETTLE_S:.0f} s; "
            "look at its log with `ray job logs`"
        )
    return status


def settled(client: JobSubmissionClient, job_id: str, within_s: float = SETTLE_S) -> JobStatus:
    """Return the job's final status, or the one after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        status = client.get_job_status(job_id)
        if status.is_terminal() or time.monotonic() > deadline:
            return status
        time.sleep(0.2)
