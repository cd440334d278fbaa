"""xenlb keeps the kernel's IPVS table in step with the life cycle of libvirt guests."""

__version__ = "0.1.0"
