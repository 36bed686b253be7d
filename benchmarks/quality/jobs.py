"""Runs of the study in several processes, most wanted first, until all are done or the time is up.

A job is the base stage of a seed, or after it the methods that learn the same models: the first learns them, the others
find them. Rows are on disk after every stage, so that what a limit of time cuts off is at most a stage of each process.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.left import guess, shared_student
from benchmarks.quality.methods import Method
from benchmarks.quality.moving import run_of
from benchmarks.quality.state import load_state
from benchmarks.quality.study import Run, Study
from stream_odml.learn.memory import keep_freed_memory


@dataclass(frozen=True)
class Job:
    """What one process does in one go: methods of one part and seed, one after the other; none is the base stage."""

    name: str
    words: tuple[str, ...]
    seed: int
    methods: tuple[str, ...]
    base: str
    """Key of the base stage."""
    seconds: float
    """A guess of what it takes: of jobs that are wanted alike, long ones begin first."""


def jobs_of(part: str, words: Sequence[str], number: int, listed: set[str]) -> Iterator[Job]:
    """Yield what is left of a part for one of its seeds: the base stage first, where it is not there yet. `words`: its
    command line; `number`: which of its seeds; `listed`: keys of runs and base stages that another part does, to which
    those of this part are added."""
    study, methods, seeds = plan(parser().parse_args(list(words)))
    if number >= len(seeds):
        return
    seed, finished = seeds[number], study.rows.finished()
    base = study.key(None, seed)
    groups: dict[str, list[Method]] = {}
    for method in methods:
        if (key := study.key(method, seed)) not in finished | listed:
            listed.add(key)
            groups.setdefault(shared_student(method) or f"alone {method.name}", []).append(method)
    if not groups:
        return
    stages, rest = len(study.stream(seed).tasks) - 1, []
    for group in groups.values():
        seconds = sum(guess(study, method, stages, bool(at)) for at, method in enumerate(group))
        names = tuple(method.name for method in group)
        rest.append(Job(f"{part} {names[0]} {seed}", tuple(words), seed, names, base, seconds))
    if base not in listed and load_state(study.work / f"base-{base}") is None:
        yield Job(f"{part} base {seed}", tuple(words), seed, (), base, 0.0)
    listed.add(base)
    yield from sorted(rest, key=lambda job: -job.seconds)


def run_jobs(jobs: Sequence[Job], processes: int, until: float, threads: int, console: Console) -> list[str]:
    """Run the jobs in that order, none before the base stage of its part and seed is there. Return what went wrong, one
    line for each job that failed or that the time (`until`, of time.monotonic) left undone. Raises ValueError where a
    process was ended from outside."""
    waiting, left = list(jobs), []
    bases = {job.base for job in jobs if not job.methods}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Forks of a process that only imports: torch and what stands on it are loaded once, not by each process.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("forkserver"), initializer=_begin, initargs=(threads,)
    )
    running: dict[Future[float], Job] = {}
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("", total=len(jobs))
        while (waiting or running) and time.monotonic() < until:
            ready = [job for job in waiting if not job.methods or job.base not in bases]
            if not running and not ready:
                break  # what waits would begin on a base stage that failed
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(_do, job)] = job
            seconds = None if until == float("inf") else max(until - time.monotonic(), 0)
            done, _ = wait(running, timeout=seconds, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                problem = future.exception()
                if isinstance(problem, BrokenProcessPool):
                    raise ValueError(
                        f"{job.name}: its process was ended, for want of memory perhaps; start again with fewer --jobs"
                    ) from problem
                if problem is not None:
                    left.append(f"{job.name}: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}")
                elif not job.methods:
                    bases.discard(job.base)
                console.print(f"{job.name}: {'failed' if problem else f'{future.result():.1f} s'}")
                bar.update(shown, advance=1, description=job.name)
    left += [f"{job.name}: not done" for job in (*running.values(), *waiting)]
    for process in list(pool._processes.values()) if running else []:
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)
    return left


def _begin(threads: int) -> None:
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def _planned(words: tuple[str, ...]) -> tuple[Study, dict[str, Method]]:
    study, methods, _ = plan(parser().parse_args(list(words)))
    return study, {method.name: method for method in methods}


def _do(job: Job) -> float:
    """Do it, and return the seconds that it took."""
    began = time.perf_counter()
    study, methods = _planned(job.words)
    if not job.methods:
        Run(study, next(iter(methods.values())), job.seed, _no_tick).plain_base()
    for name in job.methods:
        run_of(study, methods[name], job.seed, _no_tick).go()
    return time.perf_counter() - began


def _no_tick(what: str, done: int, total: int) -> None:
    del what, done, total
