"""Every broken configuration gives a located problem for each marked line, and none elsewhere."""

import json
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.config import broken
from tools import schema
from xenlb.config import ConfigError, parse
from xenlb.model.problem import Problem

SCHEMA = json.loads(schema.FILE.read_text())


def whole(case: str) -> str:
    """A file with one service that has the keys of the case, separated by semicolons; it gets the
    address and ports of a mail service, or no check for its mark, where the case has none."""
    lines = case.split("; ")
    keys = {line.split(":")[0] for line in lines}
    if "fwmark" in keys:
        lines += [] if "check" in keys else ["check: none"]
    else:
        lines += [] if "address" in keys else ["address: 192.0.2.10"]
        lines += [] if "ports" in keys else ["ports: [25]"]
    body = "".join(f"    {line}\n" for line in lines)
    return f"director: {{interface: eth0}}\nservices:\n  mail:\n{body}"


def cases(text: str) -> list[str]:
    return text.strip("\n").splitlines()


def marked(text: str) -> Counter[int]:
    """How many problems each line must have: `#!` one, `#!!` two, by line number."""
    result: Counter[int] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.search(r"#(!+)\s*$", line):
            result[number] = len(match[1])
    return result


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "xenlb.yaml")
    return caught.value.problems


def assert_located(text: str, expected: Counter[int]) -> None:
    found = problems(text)
    lines = text.splitlines()
    assert Counter(problem.line for problem in found) == expected, "\n".join(map(str, found))
    for problem in found:
        assert problem.file == "xenlb.yaml"
        assert 1 <= problem.column <= len(lines[problem.line - 1] if lines else "") + 1
        assert problem.message
        assert problem.hint
        assert "\n" not in str(problem)
        assert len(str(problem)) < 400


@pytest.mark.parametrize("case", cases(broken.ONE_KEY + broken.RULES[1:] + broken.TRAPS[1:]))
def test_key(case: str) -> None:
    text = whole(case)
    assert_located(text, marked(text) or Counter([4]))


@pytest.mark.parametrize("text", broken.FILES.strip("\n").split("\n-----\n"))
def test_file(text: str) -> None:
    assert_located(text, marked(text))


@pytest.mark.parametrize("case", cases(broken.ONE_KEY))
def test_the_schema_refuses_it(case: str) -> None:
    document: Any = yaml.safe_load(whole(case))
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def test_there_are_enough() -> None:
    count = sum(len(cases(text)) for text in (broken.ONE_KEY, broken.RULES, broken.TRAPS))
    assert count + broken.FILES.count("-----") > 400
