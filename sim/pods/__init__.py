"""What the pods of a cluster get from a simulated node: files, sockets, and their load."""
