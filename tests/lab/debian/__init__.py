"""Debian guests with a real init, for both labs: they stop as real guests do.

    guest = lab.define_debian_guest("web1", "10.0.0.51", files={…}, units=["hold.service"])
    guest.start()
    guest.wait_serving()
    guest.run("systemctl stop web")          # a root shell in the guest
    guest.shutdown()                         # units stop in order, the network last

What runs in one (root/ is laid over Debian's files):
- lab-network.service: the addresses, in the place that networking.service has; what is
  After=network.target stops before they go.
- web.service: tests/lab/xen/guest/srv/server.py; gone at once on SIGTERM. A unit that is
  After=web.service stops before it, and so can hold it up.
- lab-shell.service: `Guest.run`'s hand, until the final kill; it delays no shutdown.

The init is systemd; in the User-mode Linux lab `init="sysvinit"` gives a guest with init scripts
in its place (networking and web in sysvinit/, ordered by insserv; `units` are scripts then).

`packages.py` is what images are made with (Dom0's, too), `guest_image.py` makes the guests' one,
`guest_files.py` what makes one guest differ from another. How a guest gets its disk and how it is
asked to go is each lab's: tests/lab/xen/lab.py, tests/lab/uml/debian.py.

Differences: in the Xen lab a guest starts as new each time (its writes are in its memory); in the
User-mode Linux lab they stay from start to start, and there is no xenstore.

Measured (Debian 12, two slow cores): 15-18 s from `virsh start` to serving in the Xen lab on an
idle machine, of which libxl takes 5 s, and 31 s on a busy one; 3.3 s in User-mode Linux. The Xen
guest uses 37 MiB of its 256. There is no udev, D-Bus or logind in it: each costs seconds of an
emulated boot, and systemctl does without.
"""
