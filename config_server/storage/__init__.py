"""What the config server reads and removes in blob storage: points, whose a machine is, the container of a deleted one."""
