"""SQLite: one budget for many processes of one host, in one file."""
