"""What a guest that configures itself is given, and its answer, against a fake xenstored."""

from pathlib import Path

import pytest

from tests.fakes.xenstored import WRITE
from tests.unit.hypervisor.running import run, until
from tests.unit.hypervisor.test_xenstore_source import MAIL, Running
from xenlb.hypervisor.xenstore import guest_settings
from xenlb.hypervisor.xenstore.client import XenstoreUnavailable

BASE = "/local/domain/4/vm-data/xenlb"
TEXT = "xenlb 1\n" + "".join(f"address 192.0.2.{n % 250} lo\n" for n in range(400))


def stored(values: dict[str, str]) -> str:
    return "".join(values[f"{BASE}/{n}"] for n in range(int(values[f"{BASE}/parts"])))


def test_the_text_is_there_before_its_serial(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            serial = await it.source.write_settings(4, TEXT)
            assert stored(it.daemon.values) == TEXT
            assert (
                it.daemon.values[f"{BASE}/serial"] == serial == guest_settings.settings_serial(TEXT)
            )
            assert all(len(v) < 3100 for p, v in it.daemon.values.items() if p.startswith(BASE))
            written = [parts for kind, parts in it.daemon.requests if kind == WRITE]
            assert written[0] == (f"{BASE}/serial", "")
            assert written[-1] == (f"{BASE}/serial", serial)
            await it.source.write_settings(4, TEXT)  # it stands there already
            assert [parts for kind, parts in it.daemon.requests if kind == WRITE] == written
            it.daemon.values[f"{BASE}/1"] = "address 192.0.2.1 eth0\n"
            assert await it.source.write_settings(4, TEXT) == serial
            assert stored(it.daemon.values) == TEXT, "its serial alone says nothing of the parts"
            shorter = "xenlb 1\n"
            assert await it.source.write_settings(4, shorter) != serial
            assert stored(it.daemon.values) == shorter

    run(main)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("0123456789abcdef ok", True),
        ("0123456789abcdef failed", True),
        ("0123456789abcdef okay", False),
        ("0123456789abcdef ok\n", False),
        ("ok", False),
        ("x" * 4000, False),
    ],
)
def test_the_answer(said: str, heard: bool, short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.daemon.write("/local/domain/4/data/xenlb-guest", said)
            await it.settled()
            if heard:
                await until(it.source.new_answer.is_set, "the answer")
            assert it.source.answers == ({4: said} if heard else {})
            it.daemon.destroy(4)
            await until(lambda: it.source.answers == {}, "it is forgotten with its domain")

    run(main)


def test_without_xenstore(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.drop()
            await until(lambda: not it.source.connected, "the connection is lost")
            with pytest.raises(XenstoreUnavailable):
                await it.source.write_settings(4, TEXT)

    run(main)
