"""How a server is reached: its port, whom it lets in, and how many."""
