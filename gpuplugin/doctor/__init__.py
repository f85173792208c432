"""The checks behind `gpuplugin doctor`: what is wrong with a node, and what to do.

`collect` reads facts (files, sockets, the driver), `checks` are functions of facts alone, `verdict`
formats the diagnosis. The doctor changes nothing on the node.
"""
