"""How many replicas: what is known of workloads, trials of them on one GPU, and the advice."""
