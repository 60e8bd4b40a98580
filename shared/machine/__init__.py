"""A machine's place in storage, and which side of it is active."""
