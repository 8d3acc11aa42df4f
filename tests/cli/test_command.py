"""The command line: one clear line for what is wrong, help that a person can read, folders with readable names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import given
from hypothesis import strategies as st

from command_line import in_a_fork
from uda_seg import bench, demo, evaluate, predict, train
from uda_seg.cli import command
from uda_seg.cli.arguments import quoted
from uda_seg.cli.command import check
from uda_seg.config.compose import composed
from uda_seg.config.naming import plain_name, variant
from uda_seg.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["methd=lcmsm"], "methd is no key of the configuration; did you mean method?"),
        (["method=lcmms"], "method=lcmms: there is no such method; did you mean lcmsm?"),
        (["experiment=bicl_ladder"], "experiment=bicl_ladder is now experiment=bicl_ablation"),
        (["model=daformer_mitb6"], "model=daformer_mitb6: there is no such model; did you mean daformer_mitb5?"),
        (["method.txet=none"], "did you mean method.text?"),
        (["data.srouce.root=x"], "did you mean data.source.root?"),
        (["trainer.max_step=2"], "did you mean trainer.max_steps?"),
        (["steps=[1"], "cannot read steps=[1: "),
        (["method=dacs,lcmsm", "method.temperature=1"], "method.temperature is no key of the configuration with m"),
    ],
)  # fmt: skip
def test_check_names_the_nearest(overrides, said):
    with pytest.raises(UserError) as caught:
        check(overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a=1,b=2", "(1) [x]", "it's", "plain"])
def test_a_path_that_is_there_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for path in (name, str(tmp_path / name)):
        assert composed(check([quoted(f"data.source.root={path}")])).data.source.root == path
    assert quoted("data.crop=[64,64]") == "data.crop=[64,64]"
    assert quoted(f"init='{name}'") == f"init='{name}'"


def test_options_that_only_the_class_states_need_no_plus_sign():
    overrides = check(["model.encoder.widths=[4,4,4,4]", "method.mask_ratio=0.1", "seed=1", "hydra.verbose=true"])
    assert overrides == ["++model.encoder.widths=[4,4,4,4]", "method.mask_ratio=0.1", "seed=1", "hydra.verbose=true"]
    assert composed(overrides).model["encoder"]["widths"] == [4, 4, 4, 4]


def test_a_validation_set_can_be_added_and_deleted():
    added = "+data.validation.night={dataset: streets, domain: night_rain, split: val, size: [128,256], count: 9}"
    config = composed(check([added, "~data.validation.target"]))
    assert list(config.data.validation) == ["night"]
    assert config.data.validation["night"].domain == "night_rain"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], ""),
        (["method=dacs", "data=streets", "seed=3", "trainer.max_steps=2", "logger=wandb", "resume=last"], ""),
        (["sweep=controls", "method=dacs"], ""),
        (["data.workers=2", "evaluator.teacher=true", "hydra/launcher=basic", "trainer=auto", "data.cache=disk"], ""),
        (["data.target.root=cityscapes"], ",data.target.root=cityscapes"),
        (["data.target.root=/data/gta"], ",data.target.root=gta-7b36d902"),  # equal on every machine
        (["method.text=none", "steps=5"], ",method.text=none,steps=5"),
        (["steps=5", "++method.text=none"], ",method.text=none,steps=5"),
        (["debug=two_steps"], ",debug=two_steps"),  # so that it never overwrites a real run
        (["trainer=cpu", "trainer.precision=bf16-mixed"], ",trainer.precision=bf16-mixed,trainer=cpu"),
        (["~data.validation.target"], ",data.validation.target="),
        (["init=last.ckpt"], ",init=last.ckpt"),
        (["data.crop=[64,64]"], ",data.crop=-64-64-"),
        (["data.rare_class.enabled=True"], ",data.rare_class.enabled=true"),  # as Hydra writes true
    ],
)
def test_variant_says_how_a_run_differs(overrides, name):
    assert variant(overrides) == name


def test_what_a_multirun_has_several_values_of_is_always_named():
    jobs = [["method=dacs", "seed=0", f"trainer.max_steps={steps}"] for steps in (2, 3)]
    swept = ["method", "seed", "trainer.max_steps"]
    assert [variant(job, swept) for job in jobs] == [",trainer.max_steps=2", ",trainer.max_steps=3"]


def test_jobs_of_a_multirun_that_differ_in_hardware_alone_have_folders_of_their_own(cli, monkeypatch):
    folders: list[Path] = []

    def instead(*_):
        def job(_raw) -> float:
            folders.append(Path(HydraConfig.get().runtime.output_dir))
            return 0.0

        return job

    monkeypatch.setattr(command, "_job", instead)
    assert cli(train.main, "-m", "data=streets", "trainer.max_steps=2,3").code == 0
    assert [folder.parent.name for folder in folders] == [
        f"lcmsm_daformer_small,trainer.max_steps={steps}" for steps in (2, 3)
    ]


INIT = "init=outputs/{}/{}/seed{}/checkpoints/{}.ckpt"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("data.source.root=/a/gta", "data.source.root=/b/gta"),
        ("data.source.root=a", "data.source.root=b"),
        ("data.validation.target.root=x/a", "data.validation.target.root=y/a"),
        ("data.target.depth=/a/maps/game", "data.target.depth=/b/maps/game"),
        ("data.class_set=a/classes.yaml", "data.class_set=b/classes.yaml"),
        ("method.text_file=a/text.npz", "method.text_file=b/text.npz"),
        ("pretrained=a/mit.pth", "pretrained=b/mit.pth"),
        ("pretrained=hub:a/b", "pretrained=hub-a-b"),
        ("a=x/y", "a=x-y"),
        ("a=x y", "a=x-y"),
        ("a=x?", "a=x!"),
        ("a=[1,2]", "a=-1-2-"),
        ("a=[1-2]", "a=[1,2]"),
        ("a=[-1,2]", "a=[1,-2]"),
        ("a={x: 1}", "a=[x,1]"),
        ("a=ViT", "a=vit"),  # one folder on some disks
        ("a=é", "a=è"),
        ("a=''", "~a"),
        (INIT.format("streets", "dacs_small", 0, "last"), INIT.format("streets", "dacs_small", 1, "last")),
        (INIT.format("streets", "dacs_small", 0, "last"), INIT.format("gta2cs", "dacs_small", 0, "last")),
        (INIT.format("streets", "dacs_small", 0, "last"), INIT.format("streets", "dacs_small", 0, "best")),
        *(
            (f"{key}={one}", f"{key}={other}")
            for key, one, other in [
                ("trainer.precision", "32-true", "bf16-mixed"),
                ("trainer.sync_batchnorm", "false", "true"),
                ("trainer.overfit", "false", "true"),
                ("trainer.devices", "1", "2"),
                ("trainer.num_nodes", "1", "2"),
                ("trainer.accelerator", "cpu", "gpu"),
                ("trainer", "cpu", "ddp"),
                ("evaluator", "whole", "slide"),
                ("evaluator.flip", "false", "true"),
                ("evaluator.window", "[64,64]", "[64,128]"),
                ("data.reader", "files", "shards"),
            ]
        ),
    ],
)
def test_variant_tells_apart_what_changes_a_result(first, second):
    names = {variant([first]), variant([second])}
    assert len({name.lower() for name in names}) == 2
    for name in names:
        assert re.fullmatch(r"[\w.,=+-]+", name, re.ASCII)  # no file system minds


def test_one_path_has_one_name_however_it_is_written():
    for path in ("/data/gta/", "'/data/gta'", "/data//gta", "/data/x/../gta"):
        assert variant([f"data.source.root={path}"]) == variant(["data.source.root=/data/gta"])
    assert variant(["data.source.root=./a/"]) == variant(["data.source.root=a"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(min_size=1)), min_size=1))
def test_variant_is_a_folder_whatever_the_values_are(overrides):
    name = variant([f"{key}={value}" for key, value in overrides])
    assert name == "" or re.fullmatch(r"[\w.,=+-]{1,80}", name, re.ASCII)


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", ".", "", "a/b", "a\0b", "${x}", "a'b", "x" * 300])
def test_a_name_that_a_checkpoint_brings_is_one_part_of_a_path(name):
    plain = plain_name(name)
    assert re.fullmatch(r"[\w.=+-]{1,100}", plain, re.ASCII)
    assert plain.strip(".")
    assert plain_name("streets2camvid") == "streets2camvid"
    assert plain != plain_name(name + "x")


def test_variant_stays_short_and_tells_long_ones_apart():
    first, second = (variant([f"method.a{i}=value" for i in range(20)] + [f"steps={n}"]) for n in (1, 2))
    assert len(first) <= 80
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["methd=lcmsm"], "did you mean method?"),
        (["lcmsm"], "lcmsm is no override: write key=value, or --help"),
        (["steps=many"], "steps=many is of the wrong type: expected a whole number"),
        (["data.crop=[256,256]"], "data.crop=[256, 256] is larger than data.source.size=[128, 256]"),
        (["data.eval_classes=17"], "17"),
        (["method=lcmsm", "data=synthia2cs"], "uda_seg.prepare data=synthia2cs"),
        (["data=null"], "data=null: there is no such data; known: camvid_all"),
    ],
)
def test_train_says_in_a_line_what_is_wrong(cli, arguments, said):
    finished = cli(train.main, *arguments)
    assert said in finished.error
    assert finished.err.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "prepare", "depth", "bench"])
def test_a_typo_in_a_process_of_its_own(command, tmp_path):
    finished = in_a_fork(tmp_path, f"uda_seg.{command}", "methd=lcmsm")
    assert finished.error == "error: methd is no key of the configuration; did you mean method?"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [train, predict])
def test_help_is_for_people(cli, command):
    finished = cli(command.main, "--help")
    assert finished.code == 0
    assert finished.out.startswith(f"`python -m {command.__name__}")
    for group in (
        "method: adabn, adabn_strong, bicl, corda, dacs, daformer, lcmsm, mic, oracle, source_only",
        "data: ",
        "debug: ",
    ):
        assert group in finished.out
    assert "resume=last" in finished.out
    assert max(len(line) for line in finished.out.splitlines()) <= 120
    assert len(finished.out.splitlines()) < 80


def test_the_demo_has_a_help_of_its_own(cli, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("a training was begun"))
    for flag in ("--help", "-h"):
        finished = cli(demo.main, flag)
        assert finished.code == 0
        assert finished.out.startswith("`python -m uda_seg.demo`")
        assert finished.err == ""
    assert "quick is no override: write key=value, or --help" in cli(demo.main, "steps=1", "quick").error


def test_help_of_the_bench_names_all_that_can_be_measured():
    text = str(bench.__doc__)
    listed = text.partition("what is measured: ")[2].partition(";")[0]
    assert {name.strip() for name in listed.split(",")} == {*bench.MEASUREMENTS, bench.PHASES}
    assert all(f"baseline={name}" in text for name in bench.BASELINES)


def test_a_configuration_can_be_shown_even_where_it_is_wrong(cli):
    finished = cli(train.main, "--cfg", "job", "-p", "trainer", "trainer=cpu")
    assert finished.code == 0
    assert "accelerator: cpu" in finished.out


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (evaluate, [], "checkpoint= is missing: python -m uda_seg.evaluate checkpoint="),
        (evaluate, ["checkpoint=no.ckpt"], "checkpoint=no.ckpt: there is no such file"),
        (predict, ["checkpoint={file}", "output=out"], "input= is missing"),
        (predict, ["checkpoint={file}", "input={file}"], "output= is missing"),
        (train, ["checkpoint={file}"], "not by uda_seg.train: to begin with its weights say init="),
        (train, ["resume=no.ckpt"], "no.ckpt: there is no such file; correct the path of the checkpoint"),
        (evaluate, ["checkpoint={file},{file}"], "has several values: give one"),
        (train, ["resume=."], ". has no config.json: it is no network that uda_seg has published; name a checkpoint"),
    ],
)
def test_paths_that_are_missing(cli, command, arguments, said):
    file = cli.folder / "some.ckpt"
    file.touch()
    assert said in cli(command.main, *(argument.format(file=file) for argument in arguments)).error
