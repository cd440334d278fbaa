"""Whatever is in the file: settings, or a ConfigError whose problems have a place."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.soak import often
from tests.unit.config import broken
from tests.unit.config.test_loader import ETC, EXAMPLES
from xenlb.config import ConfigError, parse
from xenlb.config.yaml_nodes import Node, compose, decode
from xenlb.model.problem import Problem
from xenlb.model.settings import Settings

VALID = [path.read_text() for path in (ETC / "xenlb.yaml", *EXAMPLES)]
SNIPPETS = [
    "null", "~", "on", "010", "22:30", "1e9", "-1", "0", "99999999999999999999", "30", "30s", "''",
    "'x'", "[]", "{}", "[[]]", "{a: b}", "*a", "&a", "!!int 5", "<<", "- ", ": ", "? ", "\t", "\n",
    "\n  ", "#", "|", ">", "%", "@", "---\n", "...\n", "\ufeff", "\x85", "\u2028", "\0", "é", "٣",
    "192.0.2.10", "2001:db8::10", "::", "host", "guest", "defaults", "services", "none",
    "all", "any", "exec", "icmp", "[{type: dns}]", "{any: [{type: tcp}]}", "(", "[[a", "\\x", "\\",
]  # fmt: skip


def assert_settings_or_problems(text: str) -> None:
    try:
        result: Settings | tuple[Problem, ...] = parse(text, "f")
    except ConfigError as error:
        result = error.problems
    if isinstance(result, Settings):
        return
    assert result
    for problem in result:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message
        assert problem.hint
        assert len(str(problem).splitlines()) == 1
        str(problem).encode()


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid configuration with a few pieces replaced, doubled, or taken out."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):  # a whole line
            lines = text.splitlines(keepends=True)
            at = draw(st.integers(0, len(lines) - 1))
            new = draw(st.sampled_from([[], [lines[at]] * 2, ["  " + lines[at]], lines[:at][-1:]]))
            text = "".join(lines[:at] + new + lines[at + 1 :]) or "x"
        else:
            start = draw(st.integers(0, len(text)))
            length = draw(st.integers(0, 8))
            new_text = draw(st.sampled_from(SNIPPETS) | st.text(max_size=4))
            text = (text[:start] + new_text + text[start + length :]) or "x"
    return text


@st.composite
def other_value(draw: st.DrawFn) -> str:
    """A valid configuration with the value of one line replaced, so that it stays YAML."""
    lines = draw(st.sampled_from(VALID)).splitlines()
    at = draw(st.sampled_from([i for i, line in enumerate(lines) if ": " in line]))
    key, _, _ = lines[at].partition(": ")
    value = draw(
        st.sampled_from(SNIPPETS)
        | st.text("0123456789.:/%[]{}abcdefxsmhip-, '\"*&!", max_size=12)
        | st.integers().map(str)
        | st.floats().map(str)
        | st.ip_addresses().map(str)
        | st.ip_addresses(network="127.0.0.0/8").map(str)
    )
    lines[at] = f"{key}: {value}"
    return "\n".join(lines)


@given(st.text())
def test_any_text(text: str) -> None:
    assert_settings_or_problems(text)


@given(st.text(alphabet="ab:- \n[]{},'\"&*!|>%@`#?~<=\t0123456789", max_size=60))
@settings(max_examples=often(150, soak=2000))
def test_any_yaml(text: str) -> None:
    assert_settings_or_problems(text)


@given(mutated())
@settings(max_examples=often(150, soak=2000))
def test_mutated_configuration(text: str) -> None:
    assert_settings_or_problems(text)


@given(other_value())
@settings(max_examples=often(250, soak=4000))
def test_other_value(text: str) -> None:
    assert_settings_or_problems(text)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    try:
        text = decode(data, "f")
    except ConfigError as error:
        (problem,) = error.problems
        assert problem.line >= 1
    else:
        assert text.encode() == data


@given(mutated() | st.text(alphabet="ab:- \n[]{},'\"&*!|>%@`#?~\\xuU0dF", max_size=40))
@settings(max_examples=often(100, soak=1000))
def test_yaml_without_libyaml(text: str) -> None:
    """PyYAML's own parser, for where it was built without libyaml."""
    with contextlib.suppress(ConfigError):
        compose(text, "f", loader=yaml.SafeLoader)


@pytest.mark.parametrize("text", [*VALID, *broken.FILES.strip("\n").split("\n-----\n")])
def test_both_parsers_see_the_same(text: str) -> None:
    def tree(loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader]) -> Node | int:
        try:
            return compose(text, "f", loader=loader)
        except ConfigError as error:
            return error.problems[0].line

    assert tree(yaml.SafeLoader) == tree(yaml.CSafeLoader)
