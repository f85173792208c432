"""What the kubelet and the container runtime are given: sockets and CDI specs."""
