"""A stand-in for the Kubernetes API server, for tests and demonstrations without a cluster.

    with ApiServer(["node-1"]) as server:
        os.environ["KUBECONFIG"] = str(server.kubeconfig(folder))

`store` keeps objects and decides what is done with a request, without I/O; `rules` has what
resource.k8s.io/v1 allows; `server` carries both over HTTP. Virtual time uses the store alone.
"""

from gpuplugin.core.jsonobject import JsonObject
from sim.apiserver.server import HANG, JSON, STRATEGIC, TOKEN, ApiServer, Request
from sim.apiserver.store import (
    CLAIMS,
    CLASSES,
    EVENTS,
    FEATURES,
    LEASES,
    NODES,
    PODS,
    SLICES,
    ApiProblem,
    Change,
    Key,
    Resource,
    Selection,
    Store,
)

__all__ = [
    "CLAIMS",
    "CLASSES",
    "EVENTS",
    "FEATURES",
    "HANG",
    "JSON",
    "LEASES",
    "NODES",
    "PODS",
    "SLICES",
    "STRATEGIC",
    "TOKEN",
    "ApiProblem",
    "ApiServer",
    "Change",
    "JsonObject",
    "Key",
    "Request",
    "Resource",
    "Selection",
    "Store",
]
