"""Watches the hardware through the HAL, in threads with deadlines."""
