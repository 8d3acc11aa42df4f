"""The target images whose labels are trained on: chosen once per run, and kept in its folder."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

from uda_seg.data.sampling import Draw, generator
from uda_seg.errors import UserError
from uda_seg.storage.files import read_text, write_text

log = logging.getLogger(__name__)


class LabelledImages:
    """Chooses the labelled images of every target with `labelled` (`uda_seg.data.settings.DomainSettings`).

    A larger number contains the images of a smaller one of the same seed.

    Args:
        seed: Seed of the run.
        run: Folder of the run that is resumed, whose choice is read again; None for a new run.

    Attributes:
        names: Key of the domain -> the chosen images, in the data set's order.
    """

    def __init__(self, seed: int, run: Path | None = None) -> None:
        self.seed, self.run = seed, run
        self.names: dict[str, list[str]] = {}

    def choose(self, option: str, budget: int | float | str, names: Sequence[str]) -> list[str]:
        """Choose among the images `names` of the domain at `option`.

        Args:
            option: Key of the domain, e.g. ``data.target``.
            budget: A number, a share (a float), or the path of a list.
            names: All images, relative to their folder.

        Raises:
            UserError: more images than there are, an unreadable list or one with other images, or another number than
                the resumed run's.
        """
        setting = f"{option}.labelled={budget}"
        chosen = self._drawn(option, budget, names) if not isinstance(budget, str) else _listed(budget, names, setting)
        kept = None if self.run is None else self.run / file_of(option)
        if kept is not None and kept.is_file():
            begun = _listed(str(kept), names, setting)
            if len(begun) != len(chosen) or (isinstance(budget, str) and begun != chosen):
                raise UserError(
                    f"{kept}: the run has trained on the labels of {len(begun)} images, and {setting} asks for "
                    f"{'others' if len(begun) == len(chosen) else len(chosen)}: resume it as it began"
                )
            chosen = begun
        self.names[option] = chosen
        return chosen

    def _drawn(self, option: str, budget: int | float, names: Sequence[str]) -> list[str]:
        count = budget if isinstance(budget, int) else max(1, round(budget * len(names)))
        if count > len(names):
            raise UserError(
                f"{option}.labelled={budget}: there are only {len(names)} images; give at most that, or a share (1.0: "
                "all)"
            )
        order = generator(self.seed, zlib.crc32(option.encode()), Draw.LABELLED, 0).permutation(len(names))
        return [names[index] for index in sorted(order[:count])]

    def write(self, folder: Path) -> None:
        """Write the chosen images to a run's folder, one name per line."""
        for option, chosen in self.names.items():
            write_text(folder / file_of(option), "".join(f"{name}\n" for name in chosen))
            log.info("%s: the labels of %d images are trained on, listed in %s", option, len(chosen), file_of(option))


def file_of(option: str) -> str:
    """Return the name of a domain's list in a run's folder."""
    return f"labelled_{option.removeprefix('data.')}.txt"


def _listed(path: str, names: Sequence[str], setting: str) -> list[str]:
    """Read a list of images, each once, in the data set's order."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{setting}: there is no such list; give a number, a share such as 0.0625, or a file")
    wanted = {line.strip() for line in read_text(file, "give another list").splitlines()} - {""}
    if strange := sorted(wanted - set(names)):
        raise UserError(
            f"{file} lists {strange[0]}, which is none of the {len(names)} images (the first is {names[0]}): write one "
            "name per line, relative to the images' folder"
        )
    if not wanted:
        raise UserError(f"{file} lists no image: write one name per line")
    return [name for name in names if name in wanted]
