"""The kernel modules of the Xen lab's machines: which each gets, and how they are packed.

image.py puts them where they belong.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.debian import kernels
from tests.lab.host import LabError

# Parts of the kernel package that Dom0 can need; the rest is drivers for hardware it has not got.
DOM0 = (
    "arch",
    "crypto",
    "drivers/block",
    "drivers/net/bonding",
    "drivers/net/dummy.ko",
    "drivers/net/gre.ko",
    "drivers/net/tap.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/xen-netback",
    "drivers/virtio",
    "drivers/xen",
    "fs/ext4",
    "fs/fuse",
    "fs/jbd2",
    "fs/mbcache.ko",
    "fs/overlayfs",
    "lib",
    "net",
)
DOM0_AT_BOOT = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
GUEST_AT_BOOT = ("xen-netfront", "ipip")
DEBIAN_GUEST_AT_BOOT = ("xen-blkfront", "overlay", "xen-netfront")
# What a Debian guest can load with modprobe: tunnels, and what rules of nft and of both iptables
# need to mark connections and clamp segments.
DEBIAN_GUEST_LATER = (
    *("dummy", "fou", "fou6", "ip6_gre", "ip6_tunnel", "ip_gre", "ipip", "sit"),
    *("nf_conntrack", "nf_tables", "nft_chain_nat", "nft_compat", "nft_ct", "nft_limit"),
    *("nft_log", "nft_nat", "nft_reject_inet"),
    *("ip6table_filter", "ip6table_mangle", "ip6table_raw", "iptable_filter", "iptable_mangle"),
    *("iptable_raw", "xt_CT", "xt_TCPMSS", "xt_addrtype", "xt_comment", "xt_connmark"),
    *("xt_conntrack", "xt_mark", "xt_multiport", "xt_tcpudp"),
)


def files(modules: Path, names: Sequence[str]) -> list[Path]:
    """The files of modules and of what they depend on, in the order to insert them."""
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[Path(path).name.split(".")[0].replace("-", "_")] = path
    built_in = {
        Path(line).name.split(".")[0].replace("-", "_")
        for line in (modules / "modules.builtin").read_text().splitlines()
    }
    order: list[str] = []
    for name in (given.replace("-", "_") for given in names):
        if name in built_in:
            continue
        if name not in by_name:
            raise LabError(f"kernel {modules.name} has no module {name}")
        # modules.dep lists what is needed last-to-be-inserted first.
        for path in [*reversed(needs[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    return [modules / path for path in order]


def pack(modules: Path, names: Sequence[str], work: Path) -> Path:
    """A tar of /usr/lib/modules/VERSION with those modules and what they need, for modprobe."""
    version = modules.name
    root = work / "root"
    for path in files(modules, names):
        folder = (root / "lib/modules" / version / path.relative_to(modules)).parent
        folder.mkdir(parents=True, exist_ok=True)
        kernels.copy_module(path, folder)
    for index in [*modules.glob("modules.builtin*"), modules / "modules.order"]:
        shutil.copy(index, root / "lib/modules" / version)
    kernels.index_modules(root)
    archive = work / "modules.tar"

    def by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        return member

    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(root / "lib/modules", "usr/lib/modules", filter=by_root)
    return archive
