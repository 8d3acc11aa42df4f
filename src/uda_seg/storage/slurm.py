"""What SLURM says of the job that this process belongs to."""

from __future__ import annotations

import os
import signal


def requeue_signal() -> signal.Signals:
    """What SLURM sends before the time is over: what README asks for, or submitit, whose own handler saves nothing."""
    submitted = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}" if submitted else "SIGUSR1"]


def slurm_job() -> str | None:
    """What `scontrol` calls this job; a job of an array by its number there, or all of the array would be meant."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None or task is None else f"{array}_{task}"
