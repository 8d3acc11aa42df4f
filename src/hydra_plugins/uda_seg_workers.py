"""Hydra plugin of `uda_seg.sweeps.launcher`; Hydra only finds launchers in the namespace `hydra_plugins`.

No postponed annotations here: Hydra executes the module before it is in `sys.modules`, where dataclasses look it up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class WorkersConf:
    """`hydra/launcher=uda_seg_workers`; `conf/sweep/benchmark.yaml` documents the options."""

    _target_: str = "hydra_plugins.uda_seg_workers.WorkersLauncher"
    name: str = "benchmark"
    results: str = "results"
    processes: Any = "auto"
    threads: Any = "auto"
    minutes: Any = None
    report: bool = True
    base: str | None = None
    around: str | None = None


class WorkersLauncher(Launcher):
    """Launcher that trains several jobs side by side, skips finished ones, and keeps their results."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context (Hydra hook)."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run the jobs (Hydra hook)."""
        from uda_seg.sweeps.launcher import launch

        assert self.config is not None
        assert self.context is not None
        return launch(self.context.config_loader, self.config, job_overrides, **self.options)


ConfigStore.instance().store(group="hydra/launcher", name="uda_seg_workers", node=WorkersConf, provider="uda_seg")
