"""Words of a command line: whatever a path is called arrives as it is, and flags and overrides come in any order."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from uda_seg.cli.arguments import as_override, given_path, parsed, quoted, read_arguments, text_of
from uda_seg.errors import UserError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
TEXT = TEXT.filter(lambda text: text != "???")  # OmegaConf's word for what is missing


def value_of(override: str) -> object:
    """What the configuration makes of an override's value."""
    return OmegaConf.create({"value": parsed([override])[0].value()}).value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXT)
@example("a\\${b}'c\\'\\")
@example("${x}")
@example("\\")
@example('it\'s "so", a=b')
def test_text_arrives_as_it_was(text):
    assert value_of(as_override("key", text)) == text
    assert text_of(as_override("key", text)) == text


@pytest.mark.parametrize(
    "path",
    ["it's", "a b/c=d", "/data/Straße", "(x)", "a,b=c", 'say "hi"', "x=y,z", "a{b", "100%", "$HOME/x", "a:b", "ü"],
)
def test_a_path_needs_no_quotes_of_a_person(path):
    assert value_of(quoted(f"data.source.root={path}")) == path


def test_a_path_that_is_there_is_taken_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "[x]", "${y}", "{z}", "null x"):
        (tmp_path / name).mkdir()
        assert value_of(quoted(f"input={name}")) == name
        assert str(given_path([quoted(f"input={name}")], "input", "")) == name


@pytest.mark.parametrize(
    "override", ["steps=5", "data.crop=[64,64]", "init='a b'", "seed=1,2", "a={b: c}", "x=", "~a.b"]
)
def test_what_hydra_reads_stays_as_it_is(override):
    assert quoted(override) == override


@pytest.mark.parametrize(
    "value", ["{a: {a: 1}, b: {a: a:1}}", "{a: 1},{a: 2}", "[{a: 1}, {a: 2}]", "{a: '{b: 1, b: 2}', b: [a, x:1, x:2]}"]
)
def test_a_key_may_be_in_several_maps(value):
    assert parsed([f"data.x={value}"])


def test_the_home_folder_stands_for_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/her place")
    assert value_of(quoted("hydra.run.dir=~/runs")) == "/home/her place/runs"
    assert value_of(quoted("output=~")) == "/home/her place"
    assert str(given_path(["output='~/x'"], "output", "", must_exist=False)) == "/home/her place/x"
    with pytest.raises(UserError, match="output=~nobody-here/x: there is no such home folder"):
        quoted("output=~nobody-here/x")


def test_flags_and_overrides_come_in_any_order(tmp_path):
    folder = tmp_path / "a=b"
    folder.mkdir()
    said = read_arguments(["steps=3", "-m", "--config-dir", str(folder), "seed=1,2"])
    assert said.overrides == ["steps=3", "seed=1,2"]
    assert said.flags == ["--multirun", f"--config-dir={folder}"]
    assert (said.multirun, said.folder, said.explains) == (True, folder, False)


def test_help_needs_no_readable_override():
    said = read_arguments(["steps=[1", "--help"])
    assert (said.flags, said.overrides, said.explains, said.topics) == (["--help"], [], True, ())


@pytest.mark.parametrize(
    ("words", "topics", "overrides"),
    [
        (["method=t2sda", "--help"], ("method",), ["method=t2sda"]),
        (["--help", "optimizer", "data.source", "data=streets"], ("optimizer", "data.source"), ["data=streets"]),
        (["experiment=mic_gta2cs", "-h"], ("method",), ["experiment=mic_gta2cs"]),
    ],
)
def test_help_on_options_composes_what_is_chosen(words, topics, overrides):
    said = read_arguments(words)
    assert (said.topics, said.overrides, said.explains) == (topics, overrides, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--config-path=x"], "--config-dir=DIR"),
        (["-cn", "mine"], "DIR/experiment/NAME.yaml"),
        (["--config-dir=/no/such"], "--config-dir=/no/such: there is no such folder"),
        (["--experimental-rerun=x.pkl"], "reads a pickle"),
        (["-m", "--cfg", "job"], "--cfg and --multirun exclude each other"),
        (["--resolve"], "add --cfg job"),
        (["-p", "trainer"], "add --cfg job"),
        (["quick"], "quick is no override: write key=value"),
        (["="], "= is no override"),
        (["+=1"], "+=1 is no override"),
        (["hydra.run.dir="], "hydra.run.dir= is empty: name the folder of the results"),
        (["hydra.sweep.dir=''"], "hydra.sweep.dir= is empty"),
        (["data.source.root=/data/caf\udce9"], "is not UTF-8"),
        (["steps=" + "[" * 60], "too long or too deep"),
        (["steps=[" + "1," * 30_000 + "1]"], "too long or too deep"),
        (["steps=" + "9" * 5000], "cannot read"),
        (["steps=[1"], "cannot read steps=[1: "),
        (["data.target.custom.label_map={1: a, 2: [b], 1: c}"], "label_map names 1 twice in one map: give it once"),
        (["data.x={a: {b: 1}, c: {traffic light: 1,traffic light : 2}}"], "data.x names traffic light twice"),
    ],
)
def test_what_is_wrong_with_words_is_said_in_a_line(words, said):
    with pytest.raises(UserError) as caught:
        parsed(read_arguments(words).overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    str(caught.value).encode()  # can be printed and kept
