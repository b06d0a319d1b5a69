"""How each kind of server is asked: one file per protocol."""
