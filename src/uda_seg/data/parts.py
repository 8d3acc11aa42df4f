"""The domains that the streams of a run are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from uda_seg.data.custom import CustomData, described
from uda_seg.data.labelled import LabelledImages
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError


@dataclass(frozen=True)
class Part:
    """A domain as one stream or validation set reads it.

    Args:
        option: Its key in the configuration, e.g. ``data.source``.
        domain: Its settings.
        labeled: Read labels.
        share: Its weight among the domains of its stream.
        choose: Chooses the images to use among their names; None: all of them.
    """

    option: str
    domain: DomainSettings
    labeled: bool
    share: float = 1.0
    choose: Callable[[list[str]], list[str]] | None = None

    @property
    def key(self) -> str:
        """Name in messages and draws: the key of the domain, or of its chosen images."""
        return self.option if self.choose is None else f"{self.option}.labelled"

    @property
    def of_training(self) -> bool:
        """False for a validation set."""
        return not self.option.startswith("data.validation.")


def labeled_parts(settings: DataSettings, labelled: LabelledImages, *, target_labels: bool) -> list[Part]:
    """List the domains whose labels a method trains on.

    Those are the sources, and the chosen images of targets with `labelled` as further ones; or, for the oracle, the
    targets instead, of which it reads no other labels either.

    Args:
        settings: The `data` node.
        labelled: Chooses the images.
        target_labels: Train on the targets instead of the sources.
    """

    def chosen(option: str, domain: DomainSettings, share: float) -> Part:
        if domain.labelled is None:
            return Part(option, domain, True, share)
        return Part(option, domain, True, share, partial(labelled.choose, option, domain.labelled))

    if target_labels:
        return [chosen(option, domain, domain.share) for option, domain in settings.targets.items()]
    sources = [Part(option, domain, True, domain.share) for option, domain in settings.sources.items()]
    targets = [(option, domain) for option, domain in settings.targets.items() if domain.labelled is not None]
    return [*sources, *(chosen(option, domain, domain.labelled_share) for option, domain in targets)]


def target_parts(settings: DataSettings) -> list[Part]:
    """List the unlabelled targets."""
    return [Part(option, domain, False, domain.share) for option, domain in settings.targets.items()]


def validation_parts(settings: DataSettings) -> dict[str, Part]:
    """Return name -> labelled images for evaluation, without custom data sets that are said to have no labels."""
    sets = settings.validation.items()
    parts = {name: Part(f"data.validation.{name}", domain, labeled=True) for name, domain in sets}
    return {name: part for name, part in parts.items() if _may_have_labels(part)}


def _may_have_labels(part: Part) -> bool:
    said = part.domain.custom
    if part.domain.dataset != "custom" or said is None or (isinstance(said, Mapping) and "_target_" in said):
        return True
    return described(said, CustomData, f"{part.option}.custom").labels is not None


def check_domains(settings: DataSettings, *, labels: bool, depth: bool) -> None:
    """Check that the domains can be trained on together.

    Args:
        settings: The `data` node.
        labels: The method reads labels of all target images.
        depth: The method reads depth.

    Raises:
        UserError: further targets without a first one, labels asked for elsewhere than of targets, or of shards.
    """
    if settings.more_targets and settings.target is None:
        raise UserError("data.more_targets needs data.target, the first of them: set it, or remove the others")
    for option, domain in settings.domains.items():
        if domain.labelled is not None and option not in settings.targets:
            raise UserError(f"{option}.labelled={domain.labelled}: all its labels are read; it is for targets")
    if settings.reader != "shards":
        return
    if settings.more_targets:
        raise UserError("data.reader=shards reads one target: remove data.more_targets, or use data.reader=files")
    if settings.target is not None and (settings.target.include or settings.target.exclude):
        raise UserError("data.reader=shards reads all images: data.target.include and exclude need data.reader=files")
    labels = labels or any(domain.labelled is not None for domain in settings.targets.values())
    if labels or depth:
        what = "labels of the target" if labels else "depth"
        raise UserError(f"data.reader=shards has only images, and the method reads {what}: use data.reader=files")
