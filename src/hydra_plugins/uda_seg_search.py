"""Hydra plugin of `uda_seg.sweeps.search`; Hydra only finds sweepers in the namespace `hydra_plugins`.

hydra-optuna-sweeper 1.3.0 is not used: it requires optuna < 3 (2022), cannot continue an interrupted search, and names
folders of trials independently of the study's numbers.

No postponed annotations here: Hydra executes the module before it is in `sys.modules`, where dataclasses look it up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SearchConf:
    """`hydra/sweeper=uda_seg_search`; `conf/sweep/optuna.yaml` documents the options."""

    _target_: str = "hydra_plugins.uda_seg_search.Search"
    trials: int = 20
    at_once: int = 1
    objective: str = "miou"
    direction: str = "maximize"
    factor: float = 3.0
    seed: int = 0
    params: dict[str, str] | None = None


class Search(Sweeper):
    """Sweeper that asks Optuna for the settings of each job and reports the results."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.launcher: Launcher | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context (Hydra hook)."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the search (Hydra hook)."""
        from uda_seg.errors import UserError
        from uda_seg.errors.ending import fail

        try:
            from uda_seg.sweeps.search import search
        except ModuleNotFoundError as error:
            fail(UserError(f"sweep=optuna needs {error.name}: pip install '.[sweep]' in the checkout"))
        assert self.launcher is not None
        assert self.config is not None
        return search(self.launcher, self.config, arguments, **self.options)


ConfigStore.instance().store(group="hydra/sweeper", name="uda_seg_search", node=SearchConf, provider="uda_seg")
