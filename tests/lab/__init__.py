"""Labs: machines with a real kernel, a real libvirt and real traffic, made for the tests.

`host.py` is what a test talks to and `execd.py` its hand inside the lab; `traffic.py` makes and
serves load; `uml/` boots User-mode Linux with LXC and QEMU guests, `xen/` a real Xen in QEMU.
Most guests are as small as they can be; `debian/` makes those with a real init, for both labs.
"""
