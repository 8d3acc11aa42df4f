"""The folder of a network for the Hugging Face hub: weights, configuration, and the model card."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from uda_seg.config.commands import ExportConfig
from uda_seg.config.replay import describe
from uda_seg.config.schema import completed, key_of
from uda_seg.evaluation.tables import ABSENT
from uda_seg.exporting.formats import write_safetensors
from uda_seg.exporting.scores import Kind, Numbers, Score, mean_of, numbers_of
from uda_seg.methods.frozen_trunk import PLAIN
from uda_seg.results.intervals import Interval
from uda_seg.runs.build import method_class
from uda_seg.runs.checkpoint import tensors_at_test
from uda_seg.runs.published import CARD, CONFIG, FORMAT, WEIGHTS
from uda_seg.runs.trained import TrainedSegmentor
from uda_seg.storage.files import write_text, written_whole

ROOM = "make room or choose another folder with out=..."
# Of a run and its machine, not of the network: paths, hardware, and what only training writes.
_PRIVATE = re.compile(
    r"\.(root|depth|cache|workers)$|^evaluator\.teacher$|^(pretrained|init|resume|overwrite|trainer|logger)\b"
)
_ABSOLUTE = re.compile(r"^[\"']?(~|\.{0,2}/|[A-Za-z]:\\)")
_FILE = re.compile(r"\.(ya?ml|npz|pt|pth|ckpt|safetensors|json)[\"']?$")


def write_folder(config: ExportConfig, model: TrainedSegmentor, content: Mapping[str, Any], folder: Path) -> None:
    """Write weights, then card, then configuration: a folder without the last is not read.

    Args:
        config: of the command.
        model: the trained network, with adapters as they were trained.
        content: the checkpoint it was loaded from.
        folder: where to; its other files are left as they are.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    tensors = tensors_at_test(model.network)
    with written_whole(folder / WEIGHTS, ROOM) as part:
        digest = write_safetensors(tensors, part, {})
    described = configuration(config, model, content)
    described["weights"] = {"sha256": digest, "parameters": sum(t.numel() for t in tensors.values())}
    settings = config.export
    numbers = numbers_of(Path(str(config.checkpoint)), content["global_step"], settings.runs, settings.teacher)
    write_text(folder / CARD, card(config, model, described, numbers), ROOM)
    write_text(folder / CONFIG, json.dumps(described, indent=2) + "\n", ROOM)


def configuration(config: ExportConfig, model: TrainedSegmentor, content: Mapping[str, Any]) -> dict[str, Any]:
    """Build what `config.json` says: what rebuilds the network, and what a reader wants to know about it."""
    network = model.network
    return {
        "library_name": "uda_seg",
        "format": FORMAT,
        "step": content["global_step"],
        "network": "teacher" if config.export.teacher else "student",
        "id2label": dict(enumerate(model.classes.names)),
        "palette": [list(colour) for colour in model.classes.palette],
        "image": {
            "range": "RGB in [0, 1]",
            "mean": network.mean.flatten().tolist(),
            "std": network.std.flatten().tolist(),
            "channel_order": network.channel_order,
            "size": None if model.fit is None else list(model.fit.box),
            "smallest": network.smallest,
        },
        "evaluator": {k: v for k, v in asdict(config.evaluator).items() if k not in ("times", "teacher")},
        "model": _named(completed(config.model)),
        "uda_seg": said_in_public(describe(config), content["uda_seg"]),
    }


def _named(node: Any) -> Any:
    """Replace classes to build by their names, and leave out initial weights."""
    if isinstance(node, list):
        return [_named(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    name = {"class": str(node["_target_"]).rpartition(".")[2]} if "_target_" in node else {}
    return name | {k: _named(v) for k, v in node.items() if k not in ("_target_", "_partial_", "weights")}


def said_in_public(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Select what composes the network again: choices and plain overrides, without paths and the machine's settings.

    Args:
        now: description of the configuration that the network was built with.
        before: that of its checkpoint.
    """
    keys = ("source_images", "source_images_per_step", "target_images_per_step", "ranks", "bits", "seed", "converted")
    return {
        **{key: now[key] for key in ("format", "version", "choices", "classes", "class_names", "method", "class")},
        "overrides": [
            o for o in now["overrides"] if not is_private(o) and not key_of(o).startswith(tuple(now["described"]))
        ],
        "described": {key: _without_paths(value) for key, value in now["described"].items()},
        **{key: before[key] for key in keys if key in before},
    }


def is_private(override: str) -> bool:
    """Return whether an override is about a machine or a run: a path, hardware, a command's own key."""
    key, _, value = override.partition("=")
    key = key_of(key)
    own = key in ("checkpoint", "format", "out", "input", "push") or key.startswith(("export", "hydra"))
    named = _ABSOLUTE.search(value) or _FILE.search(value)
    return own or key.endswith(".weights") or _PRIVATE.search(key) is not None or named is not None


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items()}
    return None if isinstance(value, str) and _ABSOLUTE.search(value) else value


# ---------------------------------------------------------------------- the card


def card(config: ExportConfig, model: TrainedSegmentor, described: Mapping[str, Any], numbers: Numbers) -> str:
    """Write the model card: YAML header, data, method, numbers, licence, how to load, classes."""
    front = header(config, described, numbers)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {plain(_title(config, described))}",
        _about(config, described),
        f"## Numbers\n\n{_numbers(numbers)}",
        f"## Use\n\n{_use(config, model, described['uda_seg']['version'])}",
        f"## Classes\n\n{_classes(model, numbers)}",
        f"## Licence\n\n{_licence(config)}",
    ]
    return "\n\n".join(parts) + "\n"


def header(config: ExportConfig, described: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
    """Build the card's header in the hub's terms."""
    found: dict[str, Any] = {
        "library_name": "uda_seg",
        "pipeline_tag": "image-segmentation",
        "license": config.export.licence,
        "tags": ["semantic-segmentation", "domain-adaptation", "uda_seg", _method(described)],
    }
    if scores := numbers.scores():
        metric = {"type": "mean_iou", "name": "mIoU", "value": round(mean_of(scores), 4), "verified": False}
        data = {"name": config.data.name, "type": config.data.name}
        result = {"task": {"type": "image-segmentation"}, "dataset": data, "metrics": [metric]}
        found["model-index"] = [{"name": _title(config, described), "results": [result]}]
    return found


def _method(described: Mapping[str, Any]) -> str:
    return str(described["uda_seg"]["choices"].get("method", described["uda_seg"]["method"]))


def _title(config: ExportConfig, described: Mapping[str, Any]) -> str:
    return f"{_method(described)} on {config.data.name}"


def _about(config: ExportConfig, described: Mapping[str, Any]) -> str:
    data, said = config.data, described["uda_seg"]
    sources = ", ".join(plain(domain.dataset) for domain in data.sources.values())
    targets = ", ".join(plain(domain.dataset) for domain in data.targets.values()) or "none"
    images = f"; {said['source_images']} labelled images read, repetitions included" if "source_images" in said else ""
    return (
        f"A network for semantic segmentation, trained with `uda_seg` {said['version']} {supervision(config)}.\n\n"
        f"| | |\n|---|---|\n| method | {plain(_method(described))} |\n"
        f"| source{'' if method_class(config).supervised_target else ', labelled'} | {sources} |\n"
        f"| target | {targets} |\n| network | {plain(said['choices'].get('model', '?'))}, "
        f"{_count(described['weights']['parameters'])} parameters, the {described['network']} |\n"
        f"| training | step {described['step']}, seed {said.get('seed', '?')}{images} |\n"
        f"| initial weights of the encoder | {plain(start_of(config))} |"
    )


def supervision(config: ExportConfig) -> str:
    """Say which labels and images a network was trained on."""
    method, labelled = method_class(config), any(d.labelled is not None for d in config.data.targets.values())
    if method.supervised_target:
        return "on labels of the target: an upper bound for adaptation"
    if not method.needs_target or not config.data.targets:
        return "on labels of the source alone, without an image of the target"
    if labelled:
        return "by semi-supervised domain adaptation: labels of the source and of some images of the target"
    return "by unsupervised domain adaptation: labels of the source alone, images of the target"


def start_of(config: ExportConfig) -> str:
    """Name the weights that the encoder started from; a path by its last part."""
    said = config.pretrained
    if said is None:
        return "random"
    return said if PLAIN.fullmatch(said) else Path(said).name


CHOICE: Mapping[Kind, str] = {
    "student": "at the last step; nothing was chosen on labels of the target",
    "teacher": "of the teacher at the last step; nothing was chosen on labels of the target",
    "best": "at the step with the best score, **chosen on labels of the target**, so an optimistic number",
    "unsupervised": "at the step that a score without labels chose; nothing was chosen on labels of the target",
}


def _numbers(numbers: Numbers) -> str:
    scores, kind = numbers.scores(), numbers.kind
    if not scores or kind is None:
        return "No scores of this network were found beside the checkpoint."
    own = numbers.runs[0]
    counted = next(iter(own.targets.values())).classes
    several = any(score.runs is not None for score in scores)
    header = ["validation set", f"this network (seed {own.seed})"]
    if several:
        seeds = ", ".join(str(run.seed) for run in numbers.runs)
        header.append(f"{len(numbers.runs)} runs (seeds {seeds}), mean ± standard deviation")
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *(_row(score, several) for score in scores)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = [f"mIoU in % over {len(counted)} classes, {CHOICE[kind]}.", table, _uncertainty(scores, several)]
    return "\n\n".join(said)


def _row(score: Score, several: bool) -> list[str]:
    row = [plain(score.target), f"**{_percent(score.own)}**{_bounds(score.images)}"]
    if several:
        spread = score.runs
        mean = ABSENT if spread is None else f"**{_percent(spread.mean)} ± {_percent(spread.std)}**"
        row.append(f"{mean}{_bounds(score.interval)}")
    return row


def _bounds(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f" ({_percent(interval.low)} to {_percent(interval.high)})"


def _uncertainty(scores: Sequence[Score], several: bool) -> str:
    """Say what the brackets mean, and what they leave out."""
    counted = next((score.images.images for score in scores if score.images is not None), 0)
    alone = "This is one run: how much the score varies between seeds is not known."
    if not several:
        narrow = (
            f"In brackets: the 95 % interval of a bootstrap over {counted} images, too narrow for frames of one video."
        )
        return f"{narrow} {alone}" if counted else alone
    if not counted:
        return "In brackets: the 95 % interval of a bootstrap over seeds, too narrow where they are few."
    return (
        f"In brackets: 95 % intervals of a bootstrap, of this network over {counted} images, of the runs' mean over "
        "seeds and images; too narrow where seeds are few, and for frames of one video."
    )


def _use(config: ExportConfig, model: TrainedSegmentor, version: str) -> str:
    name = config.push or "OWNER/NAME"
    size = "" if model.fit is None else f" Images are resized to fit {list(model.fit.box)} (height, width) first."
    return (
        f"With the package `uda_seg`, {version} or newer:\n\n"
        f"```python\nimport uda_seg\nfrom PIL import Image\n\n"
        f'model = uda_seg.load("hub:{name}")  # or the path of this folder\n'
        f'labels = model.predict(Image.open("street.png"))  # class ids, uint8 [H, W]\n```\n\n'
        f"```\npython -m uda_seg.predict checkpoint=hub:{name} input=photos/ output=segmented/\n"
        f"python -m uda_seg.train init=hub:{name}  # start from these weights\n```\n\n"
        f"Images are RGB; the network normalises them itself.{size} The files are read without unpickling anything."
    )


def _classes(model: TrainedSegmentor, numbers: Numbers) -> str:
    known = next(iter(numbers.runs[0].targets.values())).per_class if numbers.kind == "student" else {}
    rows = ["| id | class | colour | IoU in % |", "|---:|---|---|---:|"]
    for number, (name, colour) in enumerate(zip(model.classes.names, model.classes.palette, strict=True)):
        iou = known.get(name, math.nan)
        shown = ABSENT if math.isnan(iou) else _percent(iou)
        rows.append(f"| {number} | {plain(name)} | `#{bytes(colour).hex()}` | {shown} |")
    return "\n".join(rows)


def _licence(config: ExportConfig) -> str:
    said = f"`{plain(config.export.licence)}`" if config.export.licence != "other" else "not stated by its author"
    return (
        f"This network: {said}. The package `uda_seg` is MIT; the training data and the encoder's initial weights have "
        "licences of their own, which may restrict the use of a network trained with them."
    )


def _count(value: int) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:,}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def plain(text: str) -> str:
    """Escape text for a table of Markdown: names from class sets and files are not markup."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped)
