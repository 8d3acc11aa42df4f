"""Every key that the schema or a class has can be overridden; a misspelt one names the nearest, wherever it stands."""

from __future__ import annotations

import pytest
import yaml

from command_line import composed_once
from uda_seg import evaluate, train
from uda_seg.cli import command
from uda_seg.cli.command import check
from uda_seg.cli.keys import Places
from uda_seg.config.compose import composed
from uda_seg.config.schema import CONF
from uda_seg.errors import UserError
from uda_seg.sweeps import launcher


@pytest.fixture(autouse=True)
def composed_as_before(monkeypatch):
    monkeypatch.setattr(command, "_compose", composed_once)


CLASSES = ("data.classes=custom", "data.eval_classes=all")
OWN = ("data=custom", "data.source.root=x", "data.target.root=x")


@pytest.mark.parametrize(
    "overrides",
    [
        [*CLASSES, "data.class_set.names=[road,car]"],
        [*CLASSES, "+data.class_set.names=[road,car]", "++data.class_set.things=[car]"],
        [*CLASSES, "data.class_set={names: [road, car]}", "data.class_set.subsets.few=[car]"],
        [*OWN, "data.source.custom.label_map={7: road, 8: car}"],
        [*OWN, "data.source.custom.label_map.7=road", "data.source.custom.unlisted=ignore"],
        [*OWN, "++data.source.custom.labels=null"],
        ["data.validation.target.keep_ratio=false"],
        ["+data.validation.night.dataset=streets", "data.validation.night.size=[64,64]"],
        ["model.encoder.drop_path=0.2", "method=dacs", "model=daformer_mitb0"],
        ["~data.validation.target", "~model.head.width"],
        ["seed=1", "++seed=2", "steps=3"],
    ],
)
def test_a_key_that_exists_is_accepted(overrides):
    checked = check(overrides)
    assert len(checked) == len(overrides)
    composed(checked)


def test_what_no_file_sets_arrives():
    config = composed(check([*CLASSES, "data.class_set.names=[road,car]", "data.validation.target.keep_ratio=false"]))
    assert config.data.class_set["names"] == ["road", "car"]
    assert not config.data.validation["target"].keep_ratio
    config = composed(check([*OWN, "data.source.custom.label_map={7: road, 8: car}"]))
    assert config.data.validation["target"].custom["label_map"] == {7: "road", 8: "car"}  # it follows the source


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.class_set.nmaes=[a]", "did you mean data.class_set.names?"),
        ("data.source.custom.lable_map={7: road}", "did you mean data.source.custom.label_map?"),
        ("data.validation.target.keep_rato=false", "did you mean data.validation.target.keep_ratio?"),
        ("data.validation.tagret.size=[8,8]", "did you mean data.validation.target.size?"),
        ("+data.sorce.root=x", "did you mean data.source.root?"),
        ("++optimizer.lrr=1", "did you mean optimizer.lr?"),
        ("+data.validation.night.sise=[8,8]", "did you mean data.validation.night.size?"),
        ("~data.valdation", "did you mean data.validation?"),
        ("~data.validation.night", "data.validation.night is no key"),
        ("+model.encodr.widths=[4]", "did you mean model.encoder.widths?"),
        ("method._target_=os.system", "method._target_=os.system is no class"),
        ("data._target_=os.system", "data._target_ is no key"),
        ("~init", "init is null already"),
        ("~method.width", "method.width is set by no file: there is nothing to delete"),
        ("~optimizer.lr", "~optimizer.lr would only bring back its default: write optimizer.lr=... with a value"),
        ("~data.target", "~data.target would only bring back its default"),
        ("data.source={}", "data.source={} would change nothing: give the keys below it one by one"),
        ("preset=null", "preset=null: there is no such preset; known: dinov2b"),
        ("quirks=released", "there is no such quirks; known: bicl, corda, dacs, daformer, hrda, lcmsm, mic, paper"),
        ("method.temprature=1", "did you mean method.temperature?"),
        ("method.stem=own", "method.stem is an option of BiCL's release alone: add quirks=bicl"),
        ("method.base=mic", "method.base is now part of the method: method=t2sda_dacs | t2sda | t2sda_mic"),
        ("data.crop.0=5", "did you mean data.crop?"),
        ("~method", "~method: a run has one method, neither none nor several"),
        ("preset=[minutes,paper]", "preset=[minutes,paper]: a run has one preset, neither none nor several"),
        ("~data", "data.name is missing: give it, or choose files that say it"),
    ],
)
def test_a_misspelt_key_names_the_nearest(override, said):
    with pytest.raises(UserError) as caught:
        composed(check([override]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["quirks=bicl", "method=dacs", "data=gta2cs"], "quirks=bicl are those of ReleasedBiCL, not of method=dacs"),
        (["experiment=bicl_gta2cs", "method=dacs"], "quirks=bicl are those of ReleasedBiCL, not of method=dacs"),
        (
            ["quirks=bicl", "method=bicl"],
            "quirks=bicl sets model.encoder.freeze_norm, which model=daformer_small does not",
        ),
        (
            ["quirks=hrda", "method=dacs"],
            "does not have: choose another model= or quirks=, or leave it out: ~model.detail",
        ),
        (["quirks=corda", "method=dacs", "data=gta2cs"], "sets method.depth_weight, which method=dacs does not have"),
        (["quirks=daformer", "method=source_only"], "sets method.mix_classes, which method=source_only does not have"),
    ],
)
def test_released_behaviours_of_another_method_or_network_are_refused_by_name(overrides, said):
    with pytest.raises(UserError) as caught:
        check(overrides)
    assert said in str(caught.value)


def test_released_behaviours_are_accepted_where_they_fit():
    for overrides in (
        ["quirks=bicl", "method=bicl", "data=gta2cs"],
        ["quirks=bicl", "method=bicl", "~model.encoder.freeze_norm"],
    ):
        assert composed(check(overrides)).method["_target_"].endswith("ReleasedBiCL")
    own = "method._target_=uda_seg.methods.corda.CorDA"
    assert composed(check(["quirks=corda", "method=dacs", "data=gta2cs", own])).method["depth_weight"] == "batch_mean"


def test_keys_below_a_value_that_is_no_mapping_are_refused_before_hydra_replaces_it():
    with pytest.raises(UserError, match=r"lies in data.target.custom=\$\{data.source.custom\}, which is no mapping"):
        check(["data=custom", "data.target.custom.unlisted=ignore"])
    with pytest.raises(UserError, match=r"data.source.custom=my.yaml has no keys below it"):
        check(["data=custom", "data.source.custom=my.yaml", "data.source.custom.unlisted=ignore"])


@pytest.mark.parametrize("override", ["seed=1,2", "method=dacs,mic", "seed=range(1,3)", "optimizer.lr=choice(1,2)"])
def test_several_values_need_a_multirun(override):
    with pytest.raises(UserError, match="has several values: add -m"):
        check([override], multirun=False)
    assert check([override], multirun=True) == [override]
    assert check(["sweep=controls", "seed=1,2"], multirun=False) == ["sweep=controls", "seed=1,2"]
    with pytest.raises(UserError, match="seed=1,2 has several values: add -m"):
        check(["data.validation.target.keep_ratio=false", "seed=1,2"], multirun=False)


def test_settings_of_a_sweeps_own_method_are_known_and_spelt_as_in_its_file():
    """Otherwise Hydra would combine the values of the command line with those of the file."""
    assert check(["sweep=ablate_bicl", "method.until=source"]) == ["sweep=ablate_bicl", "method.until=source"]
    for given in ("data.rare_class.enabled=false", "method.feature_distance=0,0.1", "++method.feature_distance=0"):
        assert check(["sweep=ablate_self_training", given])[1] == given.lstrip("+")
    assert check(["sweep=ablate_bicl", "method.target_weight=1"])[1] == "++method.target_weight=1"
    alone = ["sweep=ablate_bicl", "hydra.mode=RUN", "method=bicl", "method.until=source"]
    assert check(alone, multirun=False) == [*alone[:3], "++method.until=source"]
    assert check(["sweep=ablate_bicl", "quirks=bicl", "model=deeplabv2_r101"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep=ablate_bicl", "method.pull_weight=1"], r"is no key of .* with sweep=ablate_bicl .*method=bicl"),
        (["sweep=ablate_bicl", "method.text=none"], r"is no key of .* with sweep=ablate_bicl .*method=bicl"),  # lcmsm's
        (["sweep=ablate_bicl", "quirks=lcmsm"], r"quirks=lcmsm"),
        (["sweep=benchmark", "method.until=source"], r"is no key of .* with sweep=benchmark .*method=source_only"),
        (["sweep=ablate_bcl"], r"there is no such sweep; did you mean ablate_bicl\?"),
        (["sweep=null"], r"sweep=null: there is no such sweep"),
        (["sweep=ablate_bicl,ablate_corda"], r"a multirun has one sweep: run them one after the other"),
    ],
)
def test_what_a_sweep_cannot_take_is_told(overrides, said):
    with pytest.raises(UserError, match=said):
        check(overrides)


def test_hydras_own_keys_may_have_several_values():
    overrides = ["sweep=ablate_bicl", "hydra.launcher.minutes=1,2"]
    assert check(overrides) == overrides


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (CONF / "sweep").glob("ablate_*.yaml")))
def test_a_value_on_the_command_line_takes_the_place_of_those_in_the_sweeps_file(sweep, cli, monkeypatch):
    params = yaml.safe_load((CONF / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    given = [f"{key}={str(values).split(',')[-1]}" for key, values in params.items()]
    launched = []
    monkeypatch.setattr(launcher, "launch", lambda loader, config, jobs, **options: launched.extend(jobs) or [])
    finished = cli(train.main, "-m", f"sweep={sweep}", *given)
    assert finished.code == 0, finished.err
    said = [sorted(override.replace("=False", "=false") for override in job) for job in launched]  # as Hydra writes it
    assert said == [sorted([*given, f"sweep={sweep}"])]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hydra.sweeper.max_batch_size=2", "hydra.sweeper.max_batch_size: these jobs are launched all at once"),
        ("trainer.max_steps=2", "trainer.max_steps: kept results are of whole runs"),
        ("callbacks=early_stopping", "callbacks.early_stopping may end a run early: kept results are of whole runs"),
        ("trainer.devices=2", "trainer.devices, trainer.num_nodes: each of these jobs has one device"),
        ("resume=last", "resume=: these jobs continue by themselves"),
        (
            "trainer.accelerator=auto",
            "trainer.devices=auto would train each of these jobs on 4 GPUs: say trainer.devices=1",
        ),
    ],
)
def test_a_benchmark_takes_whole_runs_on_one_device_all_at_once(cli, given, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    finished = cli(train.main, "-m", "sweep=ablate_bicl", "data=streets", given)
    assert f"error: {said}" in finished.err


def test_a_pattern_of_files_needs_files():
    with pytest.raises(UserError, match=r"seed=glob\(\*\) names no files to choose from"):
        check(["seed=glob(*)"])


def test_one_setting_alone_says_what_the_encoder_starts_from(cli):
    line = cli(train.main, "pretrained=imagenet", "model.encoder.weights=x.pt").error
    assert "pretrained=imagenet and model.encoder.weights=x.pt both set the encoder's initial weights" in line


# ---------------------------------------------------------------------- files of one's own


@pytest.fixture
def own(tmp_path):
    """A folder of configuration beside the package's, with an awkward name."""
    folder = tmp_path / "it's mine, a=b"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [streets]\ndata: {name: mine, source: {root: '~/data'}}\n"
    )
    return folder


def test_a_folder_of_configuration_adds_choices(own, cli, monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    assert "mine" in Places.of(own).choices("data")
    shown = cli(train.main, "data=mine", "--config-dir", str(own), "--cfg", "job", "-p", "data.source")
    assert shown.code == 0, shown.err
    assert "root: ~/data" in shown.out
    assert "did you mean mine?" in cli(train.main, "data=mime", f"--config-dir={own}").error
    line = cli(train.main, "data=mine", f"--config-dir={own}", "overwrite=true").error
    assert "/home/her/data" in line


def test_a_checkpoint_is_wanted_beside_a_folder_of_configuration(own, cli):
    assert "checkpoint= is missing" in cli(evaluate.main, f"--config-dir={own}", "data=mine").error


# Eight lines of ten aliases each stand for a hundred million values.
LAUGHS = b"a: &a [1, 2]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in b"bcdefghi"
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"data:\n\tname: x\n", "is no YAML in UTF-8"),
        (b"data: {name: caf\xe9}\n", "is no YAML in UTF-8"),
        (b"steps: 1\nsteps: 2\n", "says steps: twice"),
        (LAUGHS, "through its aliases"),
        (b"a: &a [*a]\n", "nested more than"),
        (b"[" * 2000, "is no YAML"),
        (b"a: 2020-99-99\n", "is no YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(own, cli, content, said):
    (own / "data" / "mine.yaml").write_bytes(content)
    line = cli(train.main, "data=mine", f"--config-dir={own}").error
    assert said in line
    assert "mine.yaml" in line
