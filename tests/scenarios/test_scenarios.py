"""Plays each *.txt here: events in, ipvsadm lines out."""

from pathlib import Path

import pytest

from tests.scenarios.script import Player, ScriptError

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))

CONFIGURED = """\
configured
    services:
      mail:
        address: 192.0.2.10
        ports: [25]
        check: none
        servers: [{host: 10.0.0.5}]
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, tmp_path: Path) -> None:
    player = Player(folder=tmp_path)
    try:
        player.play(path.read_text())
    except ScriptError as error:
        pytest.fail(f"{path.name}: {error}", pytrace=False)


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONFIGURED, r"\+ ipvsadm -A -t 192\.0\.2\.10:25 -s wlc"),
        (CONFIGURED + "> ipvsadm -D -t 192.0.2.10:25\n", r"- ipvsadm -D -t 192\.0\.2\.10:25"),
        ("tick\n> status mail1 serving 1\n", r"\+ status mail1 -"),
        ("tick\n> note mail1: started\n", "- note mail1: started"),
        ("tick\n> whatever\n", "nothing is expected with 'whatever'"),
        ("probe mail1 up\n", "mail1 is not probed"),
        ("stopped mail1 id=5 whatever\n", "cannot be read"),
        ("> ipvsadm -C\n", "belongs to no event"),
    ],
)
def test_a_difference_or_error_fails_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=message):
        Player(folder=tmp_path).play(text)
