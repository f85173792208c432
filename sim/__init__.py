"""Simulated GPUs, a simulated node that implements `hal`, and a kubelet stand-in.

`sim.node` is the model on a simpy clock and shows it through the hardware layer in real
time, `sim.kubelet` plays the kubelet over real sockets.
"""
