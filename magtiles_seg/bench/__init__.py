"""How fast this machine segments, and which backend does it best."""
