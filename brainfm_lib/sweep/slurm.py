"""Cells on a cluster: an array of jobs through submitit, each resumable and queued again after a time-out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brainfm_lib.errors import InputError
from brainfm_lib.sweep.cells import Outcome, run_cell
from brainfm_lib.sweep.plan import Cell, Sweep

POLL = 5.0  # seconds between two looks at the queue


class CellJob:
    """What a job runs; `checkpoint` is called by submitit before a time-out or when the job is preempted.

    Nothing has to be saved then: pretraining keeps its own checkpoints, and finished runs are found again.
    """

    def __init__(self, sweep: Sweep, cell: Cell, root: Path) -> None:
        self.sweep, self.cell, self.root = sweep, cell, root

    def __call__(self) -> str:
        """Make the cell; see `cells.run_cell`."""
        return run_cell(self.sweep, self.cell, self.root)

    def checkpoint(self) -> Any:
        """The job to queue in place of this one: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def executor(sweep: Sweep, *, cluster: str = "slurm") -> Any:
    """A submitit executor with the sweep's settings; its folder lies beside the cells.

    Args:
        sweep: Whose `slurm` block.
        cluster: ``slurm``, or ``local`` to try it on this machine.

    Raises:
        InputError: submitit is not installed, or there is no cluster here.
    """
    try:
        import submitit
    except ImportError as problem:
        raise InputError("submitit is not installed: pip install 'brainfm_lib[slurm]'.") from problem
    settings = sweep.slurm
    folder = sweep.folder / "jobs"
    try:
        found = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=settings.requeues)
    except RuntimeError as problem:
        raise InputError(
            "There is no srun here: start it on a cluster's login node, or without --executor."
        ) from problem
    found.update_parameters(
        name=f"brainfm-{sweep.name}",
        timeout_min=settings.minutes,
        cpus_per_task=settings.cpus,
        slurm_array_parallelism=settings.at_once,
        slurm_setup=list(settings.setup),
    )
    if settings.memory_gb is not None:
        found.update_parameters(mem_gb=settings.memory_gb)
    chosen = {"partition": settings.partition, "account": settings.account, "gres": settings.gres}
    found.update_parameters(**{f"slurm_{name}": value for name, value in chosen.items() if value is not None})
    return found


def run_jobs(
    sweep: Sweep, cells: list[Cell], root: Path, *, cluster: str = "slurm", workers: int = 1
) -> Iterator[Outcome]:
    """Submit cells and yield outcomes as jobs end. Closing the iterator cancels what has not ended.

    Args:
        sweep: Whose `slurm` block.
        cells: Of the sweep.
        root: The project's folder.
        cluster: ``slurm``: one array, of which the cluster runs `at_once` jobs at a time; or ``local``.
        workers: Jobs at a time where it is local.

    Raises:
        InputError: submitit is not installed, there is no cluster here, or it refuses the jobs.
    """
    submitter, waiting = executor(sweep, cluster=cluster), list(cells)
    room = len(cells) if cluster == "slurm" else workers
    jobs: dict[str, Any] = {}
    began: dict[str, float] = {}
    try:
        while waiting or jobs:
            given, waiting = waiting[: room - len(jobs)], waiting[room - len(jobs) :]
            jobs |= _submit(submitter, [CellJob(sweep, cell, root) for cell in given])
            began |= {cell.id: time.monotonic() for cell in given}
            for name in [name for name, job in jobs.items() if job.done()]:
                job = jobs.pop(name)
                yield Outcome(name, _said(job), time.monotonic() - began[name])
            if jobs and (len(jobs) >= room or not waiting):
                time.sleep(POLL if cluster == "slurm" else 0.2)
    finally:
        for job in jobs.values():
            job.cancel()


def _submit(submitter: Any, jobs: list[CellJob]) -> dict[str, Any]:
    """Hand jobs over as one array; return submitit's own, by cell."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not jobs:
        return {}
    try:
        with submitter.batch():
            return {job.cell.id: submitter.submit(job) for job in jobs}
    except (FailedJobError, FailedSubmissionError, OSError) as problem:
        said = str(problem).strip().splitlines()[-1:] or [type(problem).__name__]
        raise InputError(
            f"The cluster took no jobs ({said[0]}): mend the slurm block of {jobs[0].sweep.file}."
        ) from problem


def _said(job: Any) -> str:
    """The cell's own word, or how its job ended."""
    problem = job.exception()
    if problem is None:
        return str(job.result())
    last = str(problem).strip().splitlines()[-1:] or [type(problem).__name__]
    return f"Job {job.job_id} ended with: {last[0]}"
