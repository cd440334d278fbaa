"""Templates: what they say comes out as it is, and nothing gets in that is no plain word."""

from collections.abc import Sequence
from importlib import resources
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.guestside.render.template import TemplateError, UnsafeValue, render, safe

WORD = r"[A-Za-z0-9._:/@][A-Za-z0-9._:/@-]{0,127}"
HOSTILE: Sequence[object] = (
    *("", " ", "a b", "a\nb", "a\n", "\ta", "$(reboot)", "`reboot`", "a;b", "a|b", "a&b", "a>b"),
    *('a"b', "a'b", "a\\b", "a%b", "a#b", "a=b", "a*b", "~a", "{{a}}", "é", "a\x00b", "-e"),
    *("a" * 129, "a" * 10_000, True, None, 1.5, -1, b"a", object()),
    IPv6Address("fe80::1%$(reboot)"),
    IPv6Address("fe80::1%a\nb"),
)


def rendered(folder: Path, text: str, **values: object) -> str:
    (folder / "t").write_text(text)
    return render("t", values, overrides=folder)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(value)[:20])
def test_nothing_hostile_gets_out(tmp_path: Path, value: object) -> None:
    """Neither as a value of its own, nor inside another, nor by a filter or block of Jinja's."""
    with pytest.raises(UnsafeValue) as unsafe:
        safe(value)
    assert len(str(unsafe.value)) < 200
    assert str(unsafe.value).isprintable()
    if not isinstance(value, bool | None):  # those may be asked, but not written
        for values in ({"x": value}, {"x": ["a", value]}, {"x": {"y": [value]}}):
            with pytest.raises(TemplateError, match="is not allowed"):
                rendered(tmp_path, "no word of it", **values)
    for text in ("{{ x }}", "{% for each in [x] %}{{ each }}{% endfor %}", "{{ x|string }}"):
        if text != "{{ x|string }}" or not isinstance(value, bool | None):
            with pytest.raises(TemplateError):
                rendered(tmp_path, text, x=value)


@given(st.text() | st.from_regex(WORD, fullmatch=True))
def test_only_words_are_safe(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@-")
    if set(text) <= allowed and 0 < len(text) <= 128 and not text.startswith("-"):
        assert safe(text) == text
    else:
        with pytest.raises(UnsafeValue):
            safe(text)


def test_what_else_a_template_says_stays(tmp_path: Path) -> None:
    text = "#!/bin/sh\n# ${#name} ${x##*/} ${y%%.*} $((1 + 2)) é\n\n  a {b} \\n\n"
    assert rendered(tmp_path, text) == text
    assert rendered(tmp_path, "a<#-- aside --#>b{{ x }}c{{ y }}\n", x=7, y=IPv4Address(1)) == (
        "ab7c0.0.0.1\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one\n{{ missing }}", r"t, line 2: 'missing' is undefined$"),
        ("one\n\n{{ x }", "t, line 3: "),
        ("{% if x %}", "t, line 1: "),
        ("{{ x.__class__ }}", "t, line 1: .*unsafe"),
        ("{{ 1 / 0 }}", "t, line 1: division by zero"),
        ("{% include '/etc/shadow' %}", "t, line 1: no loader"),
        ("{% for i in range(9) %}{% endfor %}", "t, line 1: 'range' is undefined"),
        ("\n{{ x ~ '\n' }}", r"t, line [23]: 'a\\n' is not allowed"),
    ],
)
def test_a_broken_template_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says) as error:
        rendered(tmp_path, text, x="a")
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith(f"the template {tmp_path}/t")


def test_no_script_is_taken_for_a_template() -> None:
    """What a shell script may well have, {#, is no mark here; {{ and {% would be."""
    folder = resources.files("xenlb.guestside.render").joinpath("templates")
    for file in folder.iterdir():
        if file.name.endswith((".sh", ".init")):
            text = file.read_text()
            assert not {mark for mark in ("{{", "{%", "<#--") if mark in text}, file.name
