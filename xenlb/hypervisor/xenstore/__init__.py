"""xenstore: the client, domain events, and the nodes that guests read and write."""
