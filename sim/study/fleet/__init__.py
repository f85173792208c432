"""Replays of a cluster's trace on a simulated fleet: who shares a GPU, and what it costs them."""
