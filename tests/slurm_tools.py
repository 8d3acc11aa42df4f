"""`sbatch`, `srun`, `sacct` and `scontrol` of a cluster that is this machine; each is a link to this file.

Jobs are processes. What `sbatch` was given runs once for every index of its array, and again when it was asked to be
queued again; in its first life the job that UDA_SEG_TEST_SIGNAL numbers is sent the signal of its time limit, as soon
as it has a checkpoint.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

JOB = "4100"
ROOT = Path(sys.argv[0]).parent


def sbatch() -> None:
    """Start the array and leave; its jobs go on."""
    script = Path(sys.argv[-1]).read_text()
    tasks, array = (re.search(f"--{name}=([0-9-]+)", script) for name in ("ntasks-per-node", "array"))
    last = 0 if array is None else int(array[1].split("-")[-1])
    (ROOT / "script").write_text(script)
    for index in range(last + 1):
        number = str(int(JOB) + index)
        given = {"SLURM_JOB_ID": number, "SLURM_NTASKS": tasks[1], "SLURM_NTASKS_PER_NODE": tasks[1]}
        given |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "train"}
        if array is not None:
            given |= {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(index)}
        name = number if array is None else f"{JOB}_{index}"
        log = (ROOT / f"{name}.log").open("w")
        life = [sys.executable, __file__, "life", name]
        subprocess.Popen(life, env=os.environ | given, stdout=log, stderr=log, start_new_session=True)
    print(f"Submitted batch job {JOB}")


def life(name: str) -> None:
    """A job, as often as it is queued again."""
    for count in range(3):
        subprocess.run(
            ["bash", str(ROOT / "script")], env=os.environ | {"SLURM_RESTART_COUNT": str(count)}, check=False
        )
        if not (ROOT / f"requeue-{name}").exists():
            break
        (ROOT / f"requeue-{name}").unlink()
    (ROOT / f"ended-{name}").touch()


def srun() -> None:
    """Start the ranks and wait."""
    words = sys.argv[1:]
    called = words[next(i for i, word in enumerate(words) if Path(word).name.startswith("python")) :]
    ranks = [
        subprocess.Popen(
            called,
            env=os.environ | {"SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"},
        )
        for rank in map(str, range(int(os.environ["SLURM_NTASKS"])))
    ]
    index, _, checkpoints = os.environ["UDA_SEG_TEST_SIGNAL"].partition("=")
    first = os.environ["SLURM_RESTART_COUNT"] == "0" and os.environ["SLURM_ARRAY_TASK_ID"] == index
    while first and all(rank.poll() is None for rank in ranks):
        if glob.glob(checkpoints):
            for rank in ranks:
                rank.send_signal(signal.SIGUSR2)
            break
        time.sleep(0.02)
    raise SystemExit(max(abs(rank.wait()) for rank in ranks))


def sacct() -> None:
    """States of all jobs."""
    print("JobID|State|NodeList")
    for log in ROOT.glob("*.log"):
        print(f"{log.stem}|{'COMPLETED' if (ROOT / f'ended-{log.stem}').exists() else 'RUNNING'}|localhost")


def scontrol() -> None:
    """Queue a job again once it has ended."""
    assert sys.argv[1] == "requeue"
    (ROOT / f"requeue-{sys.argv[2]}").touch()
    with (ROOT / "asked").open("a") as file:
        file.write(f"{sys.argv[2]}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["life"]:
        ROOT = Path(__file__).parent
        life(sys.argv[2])
    else:
        {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scontrol": scontrol}[Path(sys.argv[0]).name]()
