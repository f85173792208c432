"""Measures on a GPU what the model of time slicing needs: slices, switches, contexts, MPS."""
