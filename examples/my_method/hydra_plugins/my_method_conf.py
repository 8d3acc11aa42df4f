"""Tells Hydra where the choices of an installed `my_method` lie, so that `method=my_method` is known without more."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_ROOT = Path(__file__).resolve().parents[1]
_CONF = _ROOT / "my_method" / "conf" if (_ROOT / "my_method" / "conf").is_dir() else _ROOT / "conf"


class MyMethodConf(SearchPathPlugin):
    """Adds the package's `conf` behind that of `uda_seg`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder (Hydra's hook)."""
        search_path.append("my_method", f"file://{_CONF}")
