"""The whole stack in virtual time: the plugin's core, a kubelet's logic and a simulated node.

One process, no sockets, no threads: simpy's clock drives all of them.
"""
