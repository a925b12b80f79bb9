"""Wire protocols: each one a state machine without I/O over the same hub."""
