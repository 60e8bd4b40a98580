"""What every daemon is made of: its run, its configuration, its log, its threads."""
