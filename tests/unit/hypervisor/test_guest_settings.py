"""Settings of a guest that configures itself, and its answer, against a fake xenstored."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.xenstored import WRITE
from tests.unit.hypervisor.running import run, until
from tests.unit.hypervisor.test_xenstore_source import MAIL, Running
from xenlb.hypervisor.xenstore import guest_settings
from xenlb.hypervisor.xenstore.client import XenstoreUnavailable

SERIAL = "0123456789abcdef"
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
    ("value", "result"),
    [
        (f"{SERIAL} ok", "ok"),
        (f"{SERIAL} failed", "failed"),
        (f"{SERIAL} okay", None),
        (f"{SERIAL} ok\n", None),
        ("0" * 16 + " ok", None),
        ("ok", None),
        ("x" * 4000, None),
    ],
)
def test_the_answer_to_these_settings_is_waited_for(
    value: str, result: str | None, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_settings, "POLL", 0.01)

    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            answer = asyncio.create_task(it.source.wait_for_answer(4, SERIAL))
            await it.settled()
            assert not answer.done()
            it.daemon.write("/local/domain/4/data/xenlb-guest", value)
            done, _ = await asyncio.wait({answer}, timeout=10 if result else 0.1)
            assert [task.result() for task in done] == ([result] if result else [])
            answer.cancel()

    run(main)


def test_without_xenstore(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.drop()
            await until(lambda: not it.source.connected, "the connection is lost")
            with pytest.raises(XenstoreUnavailable):
                await it.source.write_settings(4, TEXT)

    run(main)
