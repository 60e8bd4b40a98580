"""What disks are sealed with, and where the keys are."""
