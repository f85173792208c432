"""One simulated GPU: compute, memory, tenants, physics and faults."""
