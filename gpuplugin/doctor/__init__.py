"""What is wrong with a node, and what to do: the checks behind `gpuplugin doctor`.

`look` gathers facts (files, sockets, the driver), `checks` are functions of facts alone, `report`
prints. Nothing here changes the node.
"""
