"""Differences between the sysctls of a guest and its needs: pure."""

from collections.abc import Iterator

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.requirements.needs import Needs, Sysctl

# For each of these the kernel uses the larger of "all" and the interface's own value; for
# src_valid_mark, either one is enough.
_WHY = {
    "arp_ignore": "the guest answers ARP requests for the service addresses",
    "arp_announce": "the guest's own ARP requests announce the service addresses",
    "rp_filter": "packets from the tunnel are dropped",
    "src_valid_mark": "marked connections are dropped where sources are checked (rp_filter)",
}
# Values that keep the guest silent: 3 covers addresses of scope host only, 4 to 7 are unused.
_SILENT = {"arp_ignore": frozenset({1, 2, 8}), "arp_announce": frozenset({2})}


def sysctls(needs: Needs, observed: Observed) -> Iterator[Difference]:
    """Compare the values in effect, which the kernel combines from "all" and the interface."""
    devices = {_parts(each)[0] for each in needs.sysctls if _parts(each)[1] == "rp_filter"}
    for need in needs.sysctls:
        interface, key = _parts(need)
        if key not in _WHY:
            yield from _exactly(need, observed)
        elif key != "rp_filter":
            yield from _combined(need, key, _receiving(needs, key, observed), observed)
        elif interface != "all" or devices == {"all"}:
            # Each device's check includes the value of "all".
            yield from _combined(need, key, (interface,), observed)


def _parts(need: Sysctl) -> tuple[str, str]:
    """The interface and the key of net/ipv4/conf/INTERFACE/KEY."""
    words = need.name.split("/")
    return ("/".join(words[3:-1]), words[-1]) if words[:3] == ["net", "ipv4", "conf"] else ("", "")


def _receiving(needs: Needs, key: str, observed: Observed) -> tuple[str, ...]:
    """The interfaces that a setting of "all" is for."""
    if key == "src_valid_mark" and needs.marks:
        return tuple(dict.fromkeys(mark.interface for mark in needs.marks))
    return tuple(link.name for link in observed.links if link.ethernet and link.up) or ("all",)


def _combined(
    need: Sysctl, key: str, interfaces: tuple[str, ...], observed: Observed
) -> Iterator[Difference]:
    def value(interface: str) -> int | None:
        return observed.sysctls.get(f"net/ipv4/conf/{interface}/{key}")

    wrong = []
    for interface in interfaces:
        values = {name: value(name) for name in dict.fromkeys(("all", interface))}
        known = [number for number in values.values() if number is not None]
        if known and max(known) in _SILENT.get(key, {need.value}):
            continue
        parts = ", ".join(
            f"{name}: {'unknown' if number is None else number}" for name, number in values.items()
        )
        wrong.append((interface, max(known, default=None), parts))
    for interface, most, parts in wrong[:1]:
        more = f" (also on {len(wrong) - 1} other interfaces)" if len(wrong) > 1 else ""
        of = "" if interface == "all" else f" of {interface}"
        too_large = most is not None and most > need.value
        yield Difference(
            message=f"{key}{of} is {'unknown' if most is None else most} ({parts}), wanted "
            f"{need.value}: {_WHY[key]}{more}",
            hint="remove it from /etc/sysctl.conf and /etc/sysctl.d; " * too_large + APPLY,
        )


def _exactly(need: Sysctl, observed: Observed) -> Iterator[Difference]:
    value = observed.sysctls.get(need.name)
    if value != need.value:
        now = "cannot be read" if value is None else f"is {value}"
        yield Difference(message=f"the sysctl {need.name} {now}, wanted {need.value}", hint=APPLY)
