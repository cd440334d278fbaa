"""What the hypervisors tell: libvirt, xenstore and QMP become events; nothing is decided here."""
