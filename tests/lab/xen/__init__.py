"""The Xen lab: a real Xen with Debian's Dom0 and libvirt, in QEMU's emulator.

Dom0 is the director: it holds the IPVS table, runs libvirtd, xenstored and the agent under
systemd. Guests are paravirtual Linux machines on a bridge behind it, clients are name spaces in
Dom0, in front of it or on the guests' bridge:

      client "routed"                              client "bridge"
      192.0.2.100                                  10.0.0.100
           | veth                                       | veth
   --------+------ director (Dom0) ---------------------+--------------------
    front0 (bridge)                     br0 (bridge)
    192.0.2.1/24  fd00:2::1/64          10.0.0.1/24  fd00:10::1/64
    service addresses (VIPs)                 | vif1.0        | vif2.0
    are added here                           |               |
   ------------------------------------------+---------------+---------------
                                        guest, eth0      guest, eth0
                                        10.0.0.11/24     10.0.0.12/24

    eth0 of Dom0, 10.0.2.15: QEMU's user network, closed but for one port of this machine's
    loopback that ends at execd (TCP 7000). Nothing else goes in or out.

    with XenLab() as lab:
        web = [lab.define_guest(f"web{n}", f"10.0.0.1{n}") for n in (1, 2)]
        lab.start(*web)                          # both at once; returns when they serve
        client = lab.client("alice", "192.0.2.100")
        client.fetch("10.0.0.11:80")             # "web1"
        web[0].shutdown()                        # virsh shutdown; .wait_gone() waits for the end

`lab.run`, `.spawn`, `.write` … are LabHost's (tests/lab/host.py) and work in Dom0; `Guest` is in
guests.py, the clients in tests/lab/netns.py. image.py builds what is booted, payload.py the disk
that carries the code under test, dom0/ and guest/ are files that go into them as they are.

What one boot changes is forgotten with it: Dom0's disk is a throw-away copy. Dom0's Debian is 12 or
13 (tests/lab/debian/releases.py); docs/debian-releases.md has what differs.

Facts this rests on (Debian 12: QEMU 7.2, Xen 4.17, Linux 6.1, libvirt 9.0; two slow cores):
- `-cpu Nehalem` is the one that works: newer models crash Dom0 under emulation (SMAP, AVX), AMD's
  make libvirt fail with "Cannot find suitable CPU model".
- Dom0's clock is Xen's (`clocksource=xen`): the emulated TSC gets marked unstable in the middle of
  a boot, and one boot in two then stood still for 17 s.
- The first run of each program is slow (its code is translated then), later ones take 30-50 ms.
- Debian 13 (Xen 4.20, Linux 6.12, libvirt 11.3) costs the emulator more: 57 s of its CPU time until
  libvirt answers, 12 costs 32 s; 20-23 s until a guest serves, 12 costs 16 s.
- There is no udev in Dom0, and no D-Bus: both cost seconds of boot and nothing here needs them.
- A guest is asked to shut down through xenstore; its kernel then calls /sbin/poweroff, which is
  systemctl in the guests of `define_debian_guest` (tests/lab/debian): their units stop in order.
- Those have a disk, which QEMU gives to Dom0 and Dom0 (xen-blkback, through Debian's own block
  script) read-only to any number of guests.
"""

from tests.lab.xen.debian import DebianGuest
from tests.lab.xen.guests import Guest
from tests.lab.xen.lab import Client, XenLab

__all__ = ["Client", "DebianGuest", "Guest", "XenLab"]
