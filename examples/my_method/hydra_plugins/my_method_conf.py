"""Hydra plugin that adds the configuration of an installed `my_method`, so that `method=my_method` is found."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_ROOT = Path(__file__).resolve().parents[1]
_CONF = _ROOT / "my_method" / "conf" if (_ROOT / "my_method" / "conf").is_dir() else _ROOT / "conf"


class MyMethodConf(SearchPathPlugin):
    """Search path plugin: adds the package's `conf` after that of `uda_seg`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder (Hydra hook)."""
        search_path.append("my_method", f"file://{_CONF}")
