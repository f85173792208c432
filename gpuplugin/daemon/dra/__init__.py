"""The edges of Dynamic Resource Allocation: files of claims, and what is done for one."""
