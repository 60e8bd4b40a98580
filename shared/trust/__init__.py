"""Who somebody is, and whether he is still believed: certificates, their files, revocations, the signed pointer to the config server."""
