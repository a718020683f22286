"""Who prepares the shards: processes of this machine, or of a Ray cluster."""

import os
from collections.abc import Callable, Iterator
from functools import lru_cache

from core.cores import available_cores
from core.errors import AssetNotFoundError
from datamodules.preparation.plan import Job, Video
from datamodules.preparation.shard import prepare_shard
from datamodules.preparation.video import Step, stored_frames
from datamodules.workers import Apart, in_processes

RETRIES = 10  # of a shard whose node is lost


def prepare(job: Job) -> int:
    """``prepare_shard``, safe from decoders: a process of their own may crash or hang."""
    return prepare_shard(job, _read_apart)


def _read_apart(job: Job, video: Video) -> Iterator[Step]:
    return _apart()(job.settings.patience, job, video)


@lru_cache(maxsize=1)
def _apart() -> Apart[Step]:
    return Apart(stored_frames)


def local(jobs: list[Job], processes: int | None = None) -> Iterator[int]:
    """On this machine.

    Args:
        jobs: what to do.
        processes: how many; None = one for each core that may be used.

    Returns:
        An iterator over the number of videos of each shard, as they are finished.
    """
    count = min(processes or available_cores(), len(jobs))
    if count <= 1:
        return map(prepare, jobs)
    return in_processes(prepare, [(job,) for job in jobs], count)


def on_ray(jobs: list[Job], processes: int | None = None) -> Iterator[int]:
    """On the Ray cluster that RAY_ADDRESS names, else on one that is started here.

    The folders of videos and result have to be the same on all nodes. The shards of a node that is
    lost are prepared by the others.

    Args:
        jobs: what to do.
        processes: how many at the same time; None = one for each core of the cluster.

    Raises:
        AssetNotFoundError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise AssetNotFoundError(
            "Ray", "the environment", "Install it: pip install 'monoface[ray]'."
        ) from error
    if not ray.is_initialized():
        here = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(log_to_driver=False, **here)
    task = ray.remote(prepare).options(max_retries=RETRIES)
    limit = processes or len(jobs)
    running = [task.remote(job) for job in jobs[:limit]]
    waiting = jobs[limit:]
    while running:
        done, running = ray.wait(running)
        for result in done:
            yield ray.get(result)
            if waiting:
                running.append(task.remote(waiting.pop(0)))


LAUNCHERS: dict[str, Callable[[list[Job], int | None], Iterator[int]]] = {
    "local": local,
    "ray": on_ray,
}
