"""The gateway of `token-budget run`: a loopback server that meters the calls of a child, and refuses before it forwards."""
