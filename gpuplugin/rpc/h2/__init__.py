"""HTTP/2 and gRPC as bytes in, bytes out: framing, header blocks, flow control, messages, calls.

Written for one trusted peer on a unix socket, and strict all the same (RFC 9113, RFC 7541). Nothing
here opens a socket, starts a thread or reads a clock: `rpc.fast` and `rpc.client` do.
"""
