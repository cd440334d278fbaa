"""The kernel's IPVS table: its types, the difference of two, ipvsadm's syntax, netlink."""
