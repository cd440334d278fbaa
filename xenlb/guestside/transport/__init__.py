"""Access to guests and their files: by ssh, guest agent, disk image or folder."""
