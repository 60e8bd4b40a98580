"""The daemons' and operators' side of the control plane: how the config server is called, and what is heard there."""
