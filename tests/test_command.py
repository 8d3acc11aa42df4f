"""The command line: one clear line for what is wrong, help that a person can read, folders with readable names."""

from __future__ import annotations

import pytest

from command_line import in_a_fork
from uda_seg import bench, demo, evaluate, predict, train
from uda_seg.cli.arguments import quoted
from uda_seg.command import check, composed, variant
from uda_seg.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["methd=lcmsm"], "methd is no key of the configuration; did you mean method?"),
        (["method=lcmms"], "method=lcmms: there is no such method; did you mean lcmsm?"),
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
        check("config", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a=1,b=2", "(1) [x]", "it's", "plain"])
def test_a_path_that_is_there_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for path in (name, str(tmp_path / name)):
        assert composed(check("config", [quoted(f"data.source.root={path}")])).data.source.root == path
    assert quoted("data.crop=[64,64]") == "data.crop=[64,64]"
    assert quoted(f"init='{name}'") == f"init='{name}'"


def test_options_that_only_the_class_states_need_no_plus_sign():
    overrides = check(
        "config", ["model.encoder.widths=[4,4,4,4]", "method.mask_ratio=0.1", "seed=1", "hydra.verbose=true"]
    )
    assert overrides == ["++model.encoder.widths=[4,4,4,4]", "method.mask_ratio=0.1", "seed=1", "hydra.verbose=true"]
    assert composed(overrides).model["encoder"]["widths"] == [4, 4, 4, 4]


def test_a_validation_set_can_be_added_and_deleted():
    added = "+data.validation.night={dataset: streets, domain: night_rain, split: val, size: [128,256], count: 9}"
    config = composed(check("config", [added, "~data.validation.target"]))
    assert list(config.data.validation) == ["night"]
    assert config.data.validation["night"].domain == "night_rain"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], ""),
        (["method=dacs", "data=streets", "seed=3", "trainer.max_steps=2", "logger=wandb", "resume=last"], ""),
        (["sweep=controls", "method=dacs"], ""),
        (["data.target.root=/x", "data.workers=2", "evaluator.teacher=true", "hydra/launcher=basic"], ""),
        (["method.text=none", "steps=5"], ",method.text=none,steps=5"),
        (["steps=5", "++method.text=none"], ",method.text=none,steps=5"),
        (["debug=two_steps"], ",debug=two_steps"),  # so that it never overwrites a real run
        (["init=outputs/streets/source_only_small/seed0/checkpoints/last.ckpt"], ",init=source_only_small"),
        (["init=last.ckpt"], ",init=last.ckpt"),
        (["data.crop=[64,64]"], ",data.crop=-64-64-"),
    ],
)
def test_variant_says_how_a_run_differs(overrides, name):
    assert variant(overrides) == name


def test_variant_stays_short_and_tells_long_ones_apart():
    first, second = (variant([f"method.a{i}=value" for i in range(20)] + [f"steps={n}"]) for n in (1, 2))
    assert len(first) <= 80
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["methd=lcmsm"], "did you mean method?"),
        (["lcmsm"], "lcmsm is no override: write key=value, or --help"),
        (["steps=many"], "steps: Value 'many' of type 'str' could not be converted to Integer"),
        (["data.crop=[256,256]"], "data.crop=[256, 256] is larger than data.source.size=[128, 256]"),
        (["data.eval_classes=17"], "17"),
        (["method=lcmsm", "data=synthia2cs"], "uda_seg.prepare data=synthia2cs"),
        (["data=null"], "data=None: there is no such data; known: cs2acdc"),
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
    for group in ("method: adabn, bicl, corda, dacs, daformer, lcmsm, mic, oracle, source_only", "data: ", "debug: "):
        assert group in finished.out
    assert "resume=last" in finished.out
    assert max(len(line) for line in finished.out.splitlines()) <= 120
    assert len(finished.out.splitlines()) < 60


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
    ],
)
def test_paths_that_are_missing(cli, command, arguments, said):
    file = cli.folder / "some.ckpt"
    file.touch()
    assert said in cli(command.main, *(argument.format(file=file) for argument in arguments)).error
