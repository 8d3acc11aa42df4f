"""Set up the view of a W&B project: what a run of uda_seg logs, in sections, best runs first.

    python scripts/wandb_workspace.py --project uda_seg --entity TEAM --targets target
    python scripts/wandb_workspace.py --project uda_seg --entity TEAM --output view.json

The second line writes the view instead of saving it at W&B, without login or network.
The package that describes it: `pip install ".[workspace]"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uda_seg.callbacks.wandb_log import STEP


def main() -> None:
    """Save the view that the command line describes, and print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="uda_seg", help="logger.project of the runs")
    parser.add_argument("--entity", required=True, help="user or team at W&B")
    parser.add_argument("--targets", nargs="+", default=["target"], help="names of the runs' data.validation")
    parser.add_argument("--output", type=Path, help="write the view to this JSON file instead")
    options = parser.parse_args()
    view = workspace(options.entity, options.project, options.targets)
    if options.output is not None:
        options.output.write_text(view._to_model().model_dump_json(indent=2) + "\n")
        return
    print(view.save().url)


def workspace(entity: str, project: str, targets: Sequence[str]) -> Any:
    """Build the view: sections for the scores, each target, the losses and the training's pictures."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    scores = ["val/miou", *(f"val/{name}/{score}" for name in targets for score in ("miou", "teacher_miou"))]
    sections = [
        ws.Section(
            name="Scores",
            is_open=True,
            panels=[
                *[wr.LinePlot(title=name, x=STEP, y=[name]) for name in scores],
                wr.BarPlot(title="mIoU, last iterate", metrics=[wr.SummaryMetric("val/miou.last")]),
                wr.BarPlot(title="mIoU, best (chosen on target labels)", metrics=[wr.SummaryMetric("val/miou.max")]),
            ],
        ),
        *[ws.Section(name=f"Target: {name}", is_open=True, panels=of_target(f"val/{name}")) for name in targets],
        ws.Section(
            name="Losses",
            panels=[
                wr.LinePlot(title="losses", x=STEP, metric_regex="train/.*/.*"),
                wr.LinePlot(title="gradient's norm", x=STEP, y=["train/gradient_norm"]),
                wr.LinePlot(title="learning rate", x=STEP, y=["train/lr"]),
                wr.LinePlot(title="diagnostics", x=STEP, metric_regex="diagnostic/.*"),
            ],
        ),
        ws.Section(name="A step", panels=[wr.MediaBrowser(media_keys=["panels/images", "panels/step"], num_columns=2)]),
    ]
    runs = ws.RunsetSettings(order=[ws.Ordering(ws.Summary("val/miou.last"), ascending=False)])
    return ws.Workspace(
        entity=entity, project=project, name="Domain adaptation", sections=sections, runset_settings=runs
    )


def of_target(place: str) -> list[Any]:
    """Build the panels of one target, whose names begin with `place`."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.MediaBrowser(title="images", media_keys=[f"{place}/images"], num_columns=2),
        wr.WeavePanelSummaryTable(table_name=f"{place}/table"),
        wr.LinePlot(title="IoU of every class", x=STEP, metric_regex=f"{place}/iou/.*"),
        wr.CustomChart(
            query={"summaryTable": {"tableKey": f"{place}/per_class_table"}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "name", "value": "value"},
            chart_strings={"title": "IoU per class"},
        ),
        wr.MediaBrowser(title="confusion matrix", media_keys=[f"{place}/confusion"], num_columns=1),
        wr.WeavePanelSummaryTable(table_name=f"{place}/confusions"),
        wr.LinePlot(title="scores without labels", x=STEP, metric_regex=f"{place}/label_free/.*"),
    ]


if __name__ == "__main__":
    main()
