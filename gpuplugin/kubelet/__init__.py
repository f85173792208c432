"""The kubelet's protocols: device plugin v1beta1, plugin registration v1, pod resources v1.

Handlers take and return serialised messages; an engine of `gpuplugin.rpc` carries them. Nothing
about devices is decided here (`gpuplugin.core`), and no life cycle (`gpuplugin.daemon`).
"""
