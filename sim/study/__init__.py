"""Questions answered with the simulator: what sharing costs, replays, recordings, reports."""
