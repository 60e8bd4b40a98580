"""HTTPS: the port, who calls, which operation answers which route."""
