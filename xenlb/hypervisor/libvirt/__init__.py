"""libvirt: connections, event loop, life cycle events, QMP events, domain XML and hook script."""
