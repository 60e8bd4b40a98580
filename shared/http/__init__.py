"""What clients of the config server and of storage share: proxies, TLS connections, and what an answer says of a clock."""
