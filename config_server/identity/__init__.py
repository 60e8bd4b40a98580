"""Who is who: the CA and its note beside the vault, this server's own certificate, what storage holds of revocations."""
