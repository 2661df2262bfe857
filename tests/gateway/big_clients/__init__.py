"""Claude Code, codex, gemini-cli and aider through ``token-budget run``: ``python tests/gateway/big_clients``."""
