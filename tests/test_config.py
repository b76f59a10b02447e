"""Strict configuration: what is written is what is built, and every mistake names the nearest right thing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from foreword.config import build, dump_yaml, load_yaml, override, to_dict
from foreword.errors import ConfigError, nearest
from foreword.prompts.spec import InitSpec, PromptSpec


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    kind: Literal["red", "green"]
    count: int = 3
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    place: Path | None = None
    either: int | str | None = None
    anything: Any = None


def test_nested_values_are_built():
    made = build(
        Outer,
        {
            "kind": "green", "inner": {"rate": 1, "names": ["a"], "pair": [3, 4]}, "many": [{"rate": 2.0}],
            "table": {"x": 1}, "place": "a/b", "either": "seven", "anything": [1, {"a": 2}],
        },
    )
    assert made == Outer(
        "green", inner=Inner(1.0, ("a",), (3, 4)), many=[Inner(2.0)], table={"x": 1.0}, place=Path("a/b"),
        either="seven", anything=[1, {"a": 2}],
    )
    assert isinstance(made.inner.rate, float) and isinstance(made.table["x"], float)
    assert build(Outer, {"kind": "red", "either": 7}).either == 7


@pytest.mark.parametrize("text", ["1e-4", "5E3", "1.5", ".5"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text):
    assert build(Inner, {"rate": text}).rate == float(text)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"kind": "red", "coutn": 1}, "unknown field 'coutn'; did you mean 'count'"),
        ({"kind": "red", "inner": {"rat": 1}}, r"unknown field 'inner\.rat'; did you mean 'rate'"),
        ({}, "missing field 'kind'"),
        ({"kind": "rde"}, "kind = 'rde' is not a valid choice; did you mean 'red'"),
        ({"kind": "red", "count": 1.5}, "count = 1.5 must be int, not float"),
        ({"kind": "red", "count": True}, "count = True must be int, not bool"),
        ({"kind": "red", "count": "3"}, "count = '3' must be int, not str"),
        ({"kind": "red", "on": 1}, "on = 1 must be bool, not int"),
        ({"kind": "red", "inner": 3}, "inner = 3 must be a mapping"),
        ({"kind": "red", "inner": {"rate": "fast"}}, r"inner\.rate = 'fast' must be float"),
        ({"kind": "red", "inner": {"rate": None}}, r"inner\.rate = None must be float"),
        ({"kind": "red", "inner": {"names": "ab"}}, r"inner\.names = 'ab' must be a list"),
        ({"kind": "red", "inner": {"names": [1]}}, r"inner\.names\[0\] = 1 must be str"),
        ({"kind": "red", "inner": {"pair": [1]}}, r"inner\.pair = \[1\] must have 2 items"),
        ({"kind": "red", "many": [{"x": 1}]}, r"unknown field 'many\[0\]\.x'"),
        ({"kind": "red", "table": [1]}, r"table = \[1\] must be a mapping"),
        ({"kind": "red", "either": 1.5}, "either = 1.5 must be int"),
        ([], "must be a mapping of fields"),
    ],
)
def test_mistakes_are_named(tree, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build(Outer, tree)
    assert "\n" not in str(caught.value)


def test_overrides_are_yaml_and_leave_the_original_alone():
    tree = {"kind": "red", "inner": {"rate": 1.0}}
    changed = override(tree, ["inner.rate=2.5", "inner.names=[a, b]", "count=7", "on=true", "table.x=1"])
    assert tree == {"kind": "red", "inner": {"rate": 1.0}}
    assert build(Outer, changed) == Outer("red", 7, True, Inner(2.5, ("a", "b")), table={"x": 1.0})


@pytest.mark.parametrize("text", ["count", "=3", "kind.deeper=1"])
def test_bad_overrides_are_named(text):
    with pytest.raises(ConfigError, match="override"):
        override({"kind": "red"}, [text])


@pytest.mark.parametrize("text", ["table-to-text:", "a: b: c", "write: {x"])
def test_an_override_with_a_colon_is_text(text):
    """The papers' own words `table-to-text:` would be a mapping in YAML."""
    assert override({}, [f"init.text={text}"]) == {"init": {"text": text}}
    assert override({}, ["init={text: a}"]) == {"init": {"text": "a"}}


@pytest.mark.parametrize("text", ["names=[a", "names={a: [}", 'text="a', "names={a: 1, a: 2}", "date=2020-13-45"])
def test_an_override_that_is_no_yaml_is_named(text):
    with pytest.raises(ConfigError, match=r"has no valid YAML value .*; put the text in quotes") as caught:
        override({}, [text])
    assert "\n" not in str(caught.value)


def test_overrides_take_any_tree_that_yaml_gives(tmp_path):
    """A bare date in a recipe is YAML's own type, which JSON does not have."""
    (tmp_path / "c.yaml").write_text("kind: red\nplace: 2020-01-01\n")
    with pytest.raises(ConfigError, match=r"place = datetime\.date"):
        build(Outer, override(load_yaml(tmp_path / "c.yaml"), ["count=4"]))


@pytest.mark.parametrize(
    "config",
    [
        Outer("red", inner=Inner(1e-9, ("a", "ü"), (5, 6)), place=Path("x"), many=[Inner()], table={"a": 0.1}),
        PromptSpec(layers=(0, 2), stacks=("decoder",), reparam="mlp", init=InitSpec("words", text="a: 'b' #c")),
    ],
)
def test_yaml_round_trip(config, tmp_path):
    dump_yaml(config, tmp_path / "c.yaml")
    assert build(type(config), load_yaml(tmp_path / "c.yaml")) == config
    assert build(type(config), to_dict(config)) == config


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not valid"), (b"- 1\n- 2", "holds list"), (b"\xff\xfe\x00a", "not valid"), (b"", "holds None"),
        (b"steps: 1\nseed: 0\nsteps: 2", "key 'steps' occurs twice"), (b"a: {b: 1, b: 2}", "key 'b' occurs twice"),
        (b"a: 2020-13-45", "not valid"),
    ],
)
def test_bad_files_are_named(content, said, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")


def test_nearest_names_one_or_lists_all():
    assert nearest("prefx", ["prefix", "prompt"]) == "; did you mean 'prefix'?"
    assert nearest("zzz", ["b", "a"]) == "; valid: a, b"
    assert nearest("zzz", []) == ""
