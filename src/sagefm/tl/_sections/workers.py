"""Who does the work: this process, a local cluster, or a cluster of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sagefm.tl._sections.folder import Result

if TYPE_CHECKING:
    from distributed import Client

Function = Callable[..., Result]
Jobs = Sequence[tuple[Any, ...]]
Submit = Callable[[Function, Jobs], Iterator[tuple[int, Result]]]
"""Runs a function on the arguments of each job, and yields the number and the result of each as it is done."""


@contextmanager
def open_workers(client: Client | None, n_jobs: int) -> Iterator[Submit]:
    """Start what is needed, and stop it at the end."""
    if client is not None:
        yield _on_cluster(client)
    elif n_jobs == 1:
        yield _in_turn
    else:
        from distributed import Client as LocalClient
        from distributed import LocalCluster

        with (
            LocalCluster(n_workers=n_jobs, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
            LocalClient(cluster) as own,
        ):
            yield _on_cluster(own)


def _in_turn(function: Function, jobs: Jobs) -> Iterator[tuple[int, Result]]:
    for number, job in enumerate(jobs):
        yield number, function(*job)


def _on_cluster(client: Client) -> Submit:
    def run(function: Function, jobs: Jobs) -> Iterator[tuple[int, Result]]:
        executor = client.get_executor(pure=False)
        futures: dict[Future[Result], int] = {executor.submit(function, *job): i for i, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                error = future.exception()  # of the cluster; ours are results
                failed = Result(0, float("nan"), f"{type(error).__name__}: {error}")
                yield futures[future], future.result() if error is None else failed
        finally:
            for future in futures:  # a cluster of the user's would go on with them after an interruption
                future.cancel()

    return run
