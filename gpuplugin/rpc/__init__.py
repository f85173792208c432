"""Carries gRPC calls over unix sockets: engines, HTTP/2 and a client. Knows no kubelet."""
