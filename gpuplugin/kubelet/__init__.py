"""The kubelet's protocols: device plugin v1beta1, plugin registration v1, pod resources v1.

Handlers take and return serialised messages; an engine carries them: `engine_fast` or
`engine_grpcio`. No decisions about devices are made here (`gpuplugin.core`), and no life cycle
(`gpuplugin.daemon`).
"""
