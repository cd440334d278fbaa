"""Sysctls of a guest held against its needs (verify.py): as the kernel combines them. Pure."""

from collections.abc import Iterator

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.requirements.needs import Needs, Sysctl

# The kernel takes the larger of "all" and the interface's own value for each of these; of
# src_valid_mark, either.
_WHY = {
    "arp_ignore": "the guest answers ARP requests for the service addresses",
    "arp_announce": "the guest's own ARP requests announce the service addresses",
    "rp_filter": "packets that come out of the tunnel are dropped",
    "src_valid_mark": "marked connections are dropped where sources are checked (rp_filter)",
}
# Values with which the guest is silent: 3 spares only addresses of scope host, 4 to 7 mean nothing.
_SILENT = {"arp_ignore": frozenset({1, 2, 8}), "arp_announce": frozenset({2})}


def sysctls(needs: Needs, observed: Observed) -> Iterator[Difference]:
    devices = {_parts(each)[0] for each in needs.sysctls if _parts(each)[1] == "rp_filter"}
    for need in needs.sysctls:
        interface, key = _parts(need)
        if key not in _WHY:
            yield from _exactly(need, observed)
        elif key != "rp_filter":
            yield from _combined(need, key, _receiving(needs, key, observed), observed)
        elif interface != "all" or devices == {"all"}:
            # That of "all" is looked at with each device's.
            yield from _combined(need, key, (interface,), observed)


def _parts(need: Sysctl) -> tuple[str, str]:
    """The interface and the key of net/ipv4/conf/INTERFACE/KEY."""
    words = need.name.split("/")
    return ("/".join(words[3:-1]), words[-1]) if words[:3] == ["net", "ipv4", "conf"] else ("", "")


def _receiving(needs: Needs, key: str, observed: Observed) -> tuple[str, ...]:
    """The interfaces to which a setting for all of them matters."""
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
        known = [each for each in values.values() if each is not None]
        if known and max(known) in _SILENT.get(key, {need.value}):
            continue
        parts = ", ".join(
            f"{name}: {'unknown' if each is None else each}" for name, each in values.items()
        )
        wrong.append((interface, max(known, default=None), parts))
    for interface, most, parts in wrong[:1]:
        more = f" (and of {len(wrong) - 1} more interfaces)" if len(wrong) > 1 else ""
        of = "" if interface == "all" else f" of {interface}"
        yield Difference(
            message=f"{key}{of} is {'unknown' if most is None else most} ({parts}), wanted "
            f"{need.value}: {_WHY[key]}{more}",
            hint=_cure(need, key, most),
        )


def _cure(need: Sysctl, key: str, found: int | None) -> str:
    if found is not None and found > need.value:
        return f"look for who sets it in /etc/sysctl.conf and /etc/sysctl.d; {APPLY}"
    return APPLY


def _exactly(need: Sysctl, observed: Observed) -> Iterator[Difference]:
    found = observed.sysctls.get(need.name)
    if found != need.value:
        is_now = "cannot be read" if found is None else f"is {found}"
        yield Difference(
            message=f"the sysctl {need.name} {is_now}, wanted {need.value}", hint=APPLY
        )
