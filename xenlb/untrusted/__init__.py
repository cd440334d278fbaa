"""What is done to foreign input before it is used: text is made printable, events are counted."""
