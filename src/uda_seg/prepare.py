"""`python -m uda_seg.prepare data=...`: unpack, check and count a pair of domains, once per data set.

Reads extracted folders, or official ZIPs in the root (unpack=auto: if folders are missing; all: also if single files
are; never). Checks every file once; a repeated or resumed call reads only changed files. Writes class statistics for
rare-class sampling, and index.html, problems.txt, classes.md and contact_sheet.png to its folder. Fails on damaged
files; fix=true repairs what is possible, sets a small rest aside, and never deletes. data.cache=disk writes images at
training resolution, which training reads many times as fast. data.reader=shards checks and indexes the target's shards;
pack.out=FOLDER packs its images into shards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from hydra.utils import get_class
from numpy.typing import NDArray

from uda_seg.cli.command import run
from uda_seg.config.commands import PrepareConfig
from uda_seg.data.class_files import official_pixels
from uda_seg.data.custom import classes_of
from uda_seg.data.dataset_files import splits_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import ClassSet
from uda_seg.data.parts import validation_parts
from uda_seg.data.prepare.archives import (
    find_archives,
    folders_of,
    lacks_folders,
    list_members,
    missing_members,
    unpack,
)
from uda_seg.data.prepare.check import Problem, Report, check_domain, summary, to_text
from uda_seg.data.prepare.page import page, problem_table
from uda_seg.data.prepare.repair import can_be_mended, repair, set_aside
from uda_seg.data.readers import resize_of
from uda_seg.data.settings import DomainSettings, prepare_command
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import save_statistics, statistics_file
from uda_seg.data.storage.disk_cache import write_cache
from uda_seg.data.storage.packing import index_shards, pack
from uda_seg.data.storage.shard_index import INDEX
from uda_seg.data.streets.export import export
from uda_seg.errors import UserError
from uda_seg.evaluation.servers import SERVERS
from uda_seg.evaluation.tables import Table, print_table
from uda_seg.runs.record import reads_depth
from uda_seg.storage.files import CACHE, save_png, write_text
from uda_seg.storage.user_cache import user_cache
from uda_seg.visualize.pictures import Captioned, Row, colorize, legend, panel_grid

log = logging.getLogger(__name__)

Shares = NDArray[np.float64]

SCENES = 6


def main() -> None:
    """Run the command."""
    run(PrepareConfig, prepare, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Write results to a separate folder next to the runs on the same data."""
    return ["hydra.run.dir='outputs/${data.name}/prepared'", *given]


def prepare(config: PrepareConfig, folder: Path) -> None:
    """Unpack, check, repair, count and draw every domain of `data=`; missing images of streets are rendered.

    Raises:
        UserError: damaged files, which are listed in `problems.txt`.
    """
    if config.streets.export is not None:
        export(config.streets, config.data.world_seed, progress=config.callbacks.progress)
        return
    cv2.setNumThreads(1)  # parallelism is over files
    classes = classes_of(config.data)
    if config.pack.out is not None:
        pack_target(config, Path(config.pack.out).expanduser(), classes)
        return
    reports = []
    for option, domain in domains(config):
        if option == "data.target" and config.data.reader == "shards":
            index_target(domain)
            continue
        reports.append(check(config, option, domain, classes))
        keep_statistics(reports[-1])
    note_absent([r for r in reports if r.option in labelled_domains(config)], classes.subset(config.data.eval_classes))
    write_results(config, folder, reports, classes)
    damage = [problem for report in reports for problem in report.problems if problem.damage]
    if damage:
        first, mendable = damage[0], not config.fix and any(map(can_be_mended, damage))
        advice = f"; repair what can be repaired with {prepare_command(config.data)} fix=true" if mendable else ""
        raise UserError(
            f"{len(damage)} files or folders are damaged, the first is {first.file}: {first.what} ({first.cure}); "
            f"all are in {folder / 'problems.txt'}{advice}"
        )
    if config.data.cache == "disk":
        write_caches(config, reports)


def domains(config: PrepareConfig) -> Iterator[tuple[str, DomainSettings]]:
    """Yield every domain that training reads with its key: no validation sets that are said to have no labels."""
    read = {part.option for part in validation_parts(config.data).values()}
    for option, domain in config.data.domains.items():
        if option in read or not option.startswith("data.validation."):
            yield option, domain


def labelled_domains(config: PrepareConfig) -> dict[str, DomainSettings]:
    """Return key -> the domains all of whose labels training reads: the sources, or for the oracle the targets."""
    of_target = bool(getattr(get_class(config.method["_target_"]), "supervised_target", False))
    of_target = of_target and config.data.reader == "files"  # training refuses the oracle on shards
    targets = {option: domain for option, domain in config.data.targets.items() if domain.labelled is None}
    return targets if of_target and targets else config.data.sources


def check(config: PrepareConfig, option: str, domain: DomainSettings, classes: ClassSet) -> Report:
    """Unpack a domain if necessary, check it, and with `fix=true` repair it and check it again."""
    unpack_archives(domain, config.unpack)
    report = _check(config, option, domain, classes)
    for mend in (partial(repair, name=domain.dataset), set_aside) if config.fix else ():
        if done := mend(report):
            for line in done:
                log.info("fixed: %s", line)
            report = _check(config, option, domain, classes)
    return report


def _check(config: PrepareConfig, option: str, domain: DomainSettings, classes: ClassSet) -> Report:
    depth = reads_depth(config) and not option.startswith("data.validation")
    data = open_domain(domain, config.data, classes, option, labeled=False, depth=depth)
    optional = option in config.data.targets and option not in labelled_domains(config)
    labels = "optional" if optional else "needed"
    if domain.split == "test" and domain.dataset in SERVERS:
        labels = "none"  # only on test servers; Cityscapes' files for this split are empty
    whole = domain.count is None and not domain.include and not domain.exclude
    return check_domain(data, option, user_cache(), labels=labels, whole=whole)


def unpack_archives(domain: DomainSettings, mode: str) -> None:
    """Unpack missing files from a domain's official ZIPs.

    `auto`: if folders are missing, or an earlier call was interrupted. Single files may be missing on purpose; `all`
    unpacks these too.
    """
    if domain.root is None or domain.dataset not in SPECS or mode == "never":
        return
    root, spec = Path(domain.root).expanduser(), SPECS[domain.dataset]
    archives = find_archives(root)
    if not archives:
        return
    place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    begun = user_cache() / "unpacking" / f"{root.name}-{place}"
    members = list_members(archives, folders_of(spec, domain.dataset))
    lacking = any(lacks_folders(spec, split, root, members) for split in splits_of(domain.split))
    if mode == "auto" and not begun.exists() and not lacking:
        return
    missing = missing_members(members, root)
    if missing:
        write_text(begun, str(root), cure=CACHE)
        unpack(missing, root)
    begun.unlink(missing_ok=True)


def index_target(domain: DomainSettings) -> None:
    """Check and index the target's shards, and log the number of images."""
    if domain.root is None:
        raise UserError("data.target.root is not set: set it to the folder of the shards")
    shards = index_shards(domain.root)
    images, size = sum(shard.images for shard in shards), sum(shard.bytes for shard in shards)
    log.info("data.target: %d images in %d shards, %.2f GB; written: %s", images, len(shards), size / 1e9, INDEX)


def pack_target(config: PrepareConfig, out: Path, classes: ClassSet) -> None:
    """Pack the target's training images into shards."""
    if config.data.target is None or config.data.reader == "shards":
        raise UserError(f"pack.out={out}: there is no data.target of single files to pack; it needs data.reader=files")
    data = open_domain(config.data.target, config.data, classes, "data.target", labeled=False)
    shards = pack(data, out, config.pack.images)
    how = " ".join(["data.reader=shards", f"data.target.root={shlex.quote(str(out))}", *validation_roots(config)])
    log.info("written: %d images in %d shards; read them with %s", len(data), len(shards), how)


def validation_roots(config: PrepareConfig) -> list[str]:
    """List overrides for validation roots shared with the target, whose shards do not contain their images."""
    assert config.data.target is not None
    shared = [(n, d.root) for n, d in config.data.validation.items() if d.root == config.data.target.root]
    return [f"data.validation.{name}.root={shlex.quote(root)}" for name, root in shared if root is not None]


def keep_statistics(report: Report) -> None:
    """Save a domain's class counts for training, and compare them with official files if there are any."""
    data, found = report.dataset, report.statistics
    if found is None or report.labels != len(data) or report.damaged:
        return
    official = official_pixels(data)
    if official is not None and (differ := (official != found.pixels).any(axis=1)).any():
        first = data.names[int(np.argmax(differ))]
        what = f"the statistics files there are wrong for {int(differ.sum())} labels, the first is that of {first}"
        cure = "the counted ones are used"
        report.problems.append(Problem(str(data.root), what, cure, "statistics", damage=False))
    if not statistics_file(data, user_cache()).is_file() or official is not None:
        save_statistics(data, user_cache(), found)


def note_absent(reports: Sequence[Report], wanted: Sequence[int]) -> None:
    """Note evaluated classes that do not occur in the labels of any source, with the last of them."""
    report, found = reports[-1], [report.statistics for report in reports]
    if any(statistics is None or not statistics.pixels.any() for statistics in found):
        return  # already reported for all of them
    data = report.dataset
    absent = [
        data.classes.names[c]
        for c in wanted
        if not any(statistics.pixels[:, c].any() for statistics in found if statistics is not None)
    ]
    if absent:
        what = f"no label has a pixel of {', '.join(absent)}: evaluated, but cannot be learnt"
        cure = "evaluate other classes (data.eval_classes), or take other labels"
        report.problems.append(Problem(str(data.label_root), what, cure, "classes", damage=False))


def write_results(config: PrepareConfig, folder: Path, reports: Sequence[Report], classes: ClassSet) -> None:
    """Print the findings, and write them to `folder`."""
    problems = sorted((p for report in reports for p in report.problems), key=lambda p: not p.damage)
    if problems:
        print_table(problem_table(problems))
    names = {report.option: report.option.removeprefix("data.") for report in reports}
    shares = {names[r.option]: pixel_shares(r) for r in reports if r.statistics is not None}
    counts = [{"domain": names[r.option], "root": str(r.dataset.root), **summary(r)} for r in reports]
    Table(tuple(counts[0]), tuple(tuple(map(str, c.values())) for c in counts), "domains").show()
    table = share_table(shares, classes)
    table.show()
    found = dict(domains(config))  # more than the reports, as images in shards have none
    titles = [f"{names[r.option]}: {found[r.option].domain or found[r.option].dataset}" for r in reports]
    sheet = panel_grid([row for r, title in zip(reports, titles, strict=True) for row in scenes(r, title, classes)])
    key = legend(classes.names, classes.palette, sheet.shape[1])
    sheet = np.concatenate([sheet, key])
    write_text(folder / "problems.txt", to_text(problems))
    write_text(folder / "classes.md", table.markdown())
    save_png(folder / "contact_sheet.png", sheet)
    write_text(folder / "index.html", page(prepare_command(config.data), counts, shares, classes, problems, sheet))
    log.info("written: %s", folder / "index.html")


def scenes(report: Report, title: str, classes: ClassSet) -> list[Row]:
    """Build a row of images and a row of labels, spread over the images without defects."""
    data, good = report.dataset, report.good
    if not good:
        return [Row(title, [Captioned("nothing to show", np.full((64, 256, 3), 255, np.uint8))])]
    indices = [good[place] for place in sorted({int(p) for p in np.linspace(0, len(good) - 1, SCENES)})]
    samples = [data.read(index) for index in indices]
    labels = [colorize(s.label, classes.palette) for s in samples if s.label is not None]
    rows = [Row(title, [Captioned("", s.image) for s in samples])]
    return rows + ([Row("", [Captioned("", label) for label in labels])] if labels else [])


def pixel_shares(report: Report) -> Shares:
    """Compute each class's share of the labelled pixels, [K]."""
    assert report.statistics is not None
    counts = report.statistics.pixels.sum(0)
    shares: Shares = counts / max(1, int(counts.sum()))
    return shares


def share_table(shares: dict[str, Shares], classes: ClassSet) -> Table:
    """Tabulate the share of pixels per class and domain in percent."""
    rows = [(name, *(f"{100 * share[i]:.2f}" for share in shares.values())) for i, name in enumerate(classes.names)]
    return Table(("class", *shares), tuple(rows), "share of labelled pixels in %")


def write_caches(config: PrepareConfig, reports: Sequence[Report]) -> None:
    """Write disk caches of source and target at training resolution, with the labels that training reads."""
    found = dict(domains(config))
    for report in reports:
        option, domain = report.option, found[report.option]
        if option.startswith("data.validation"):
            continue  # scored against labels of full size, a few times per run
        data = open_training(config, option, domain, report.dataset.classes)
        size = write_cache(data, resize_of(domain), user_cache(), report.shapes.tolist())
        log.info("%s: resized images take %.2f GB in %s", option, size / 1e9, user_cache() / "resized")


def open_training(config: PrepareConfig, option: str, domain: DomainSettings, classes: ClassSet) -> SegmentationDataset:
    """Open a domain as in training."""
    depth, labeled = reads_depth(config), option in config.data.sources or option in labelled_domains(config)
    return open_domain(domain, config.data, classes, option, labeled=labeled, depth=depth)


if __name__ == "__main__":
    main()
