"""The ways into a guest, and what is done there to its files: ssh, guest agent, disk, folder."""
