"""The tests that docs/SECURITY.md names for its bounds exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = (HERE.parents[1] / "docs/SECURITY.md").read_text()


def test_every_test_named_in_the_table_exists() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`([a-z/]+/test_\w+\.py)`", row)
        assert named, row
        assert all((HERE / name).is_file() for name in named), row
