"""The HTTP port: /metrics, /health, /ready and the status page."""
