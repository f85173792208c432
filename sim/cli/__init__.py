"""Commands of the simulator; `gpuplugin.cli.parser` names them and loads what is asked for."""
