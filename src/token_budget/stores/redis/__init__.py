"""Redis and Valkey: one budget for many hosts, in one server."""
