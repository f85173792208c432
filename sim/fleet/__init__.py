"""Many simulated nodes, kept at a real API server by one process.

`node` is one of them in virtual time, with the plugin's and the kubelet's decisions; `objects` is
what the API server gets of it; `api` makes the requests; `keeper` does all that in time.
"""
