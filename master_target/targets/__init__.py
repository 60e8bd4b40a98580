"""What disks are applied to: base.py is the interface, state.py the rules that make every crash recoverable."""
