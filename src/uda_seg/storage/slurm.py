"""SLURM job of this process."""

from __future__ import annotations

import os
import signal


def requeue_signal() -> signal.Signals:
    """Return SLURM's signal before the time limit: that of README, or submitit's, whose own handler saves nothing."""
    submitted = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}" if submitted else "SIGUSR1"]


def slurm_job() -> str | None:
    """Return the job's id for `scontrol`; an array job needs its index, or the whole array would be addressed."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None or task is None else f"{array}_{task}"
