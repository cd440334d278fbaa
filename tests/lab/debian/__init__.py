"""Debian guests with a real init, for both labs: they stop as real guests do.

    guest = lab.define_debian_guest("web1", "10.0.0.51", files={…}, units=["hold.service"])
    guest.start()
    guest.wait_serving()
    guest.run("systemctl stop web")          # a root shell in the guest
    guest.shutdown()                         # units stop in order, the network last

`define_debian_guest` is in definition.py, for both labs. With `network="ifupdown"`, "networkd",
"netplan" or "network-manager" the guest's addresses come from that program's own files
(networks.py); with `ssh=True` the host's plain `ssh root@ADDRESS` works (ssh.py). Neither is there
otherwise: each costs boot time.

What runs in one (root/ is laid over Debian's files):
- lab-network.service: the addresses, in the place that networking.service has; what is
  After=network.target stops before they go.
- web.service: tests/lab/xen/guest/srv/server.py; gone at once on SIGTERM. A unit that is
  After=web.service stops before it, and so can hold it up.
- lab-shell.service: `Guest.run`'s hand, until the final kill; it delays no shutdown.

The init is systemd; in the User-mode Linux lab `init="sysvinit"` gives a guest with init scripts
in its place (lab-network and web in sysvinit/, ordered by insserv; `units` are scripts then).

`packages.py` is what images are made with (Dom0's, too), `guest_image.py` makes the guests' one,
`guest_files.py` what makes one guest differ from another. How a guest gets its disk and how it is
asked to go is each lab's: tests/lab/xen/debian.py, tests/lab/uml/debian.py.

Differences: in the Xen lab a guest starts as new each time (its writes are in its memory) unless it
is made with `persistent=True`; in the User-mode Linux lab they stay from start to start, there is
no xenstore, and guests can load no kernel module (those of uml/debian.py are there). The files of
a guest that is shut off: `guest.root` there, `guest.mounted()` in the Xen lab.

Measured (Debian 12, two slow cores): 15-18 s from `virsh start` to serving in the Xen lab on an
idle machine, of which libxl takes 5 s, and 31 s on a busy one; 3.3 s in User-mode Linux. The Xen
guest uses 37 MiB of its 256. No udev, D-Bus or logind runs in it unless its network needs them:
each costs seconds of an emulated boot, and systemctl does without.
"""
