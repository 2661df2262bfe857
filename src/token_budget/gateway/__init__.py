"""The gateway of `token-budget run`: a loopback server that meters a child's calls, and refuses before it forwards.

It needs the extra ``cli``: ``pip install 'token-budget-pool[cli]'``.
"""

from __future__ import annotations

from token_budget.gateway._limits import Limits
from token_budget.gateway._server import Gateway
from token_budget.gateway._upstreams import Upstream, upstreams

__all__ = ["Gateway", "Limits", "Upstream", "upstreams"]
