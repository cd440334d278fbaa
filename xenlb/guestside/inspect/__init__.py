"""The network state of a guest, and its differences from what the guest needs: pure."""
