"""The folder with database, CA and operator token: whether it is whole and of one installation, its lock, its backup as one file."""
