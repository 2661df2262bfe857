"""What the errors of a server mean: to be asked again, elsewhere, or never; and their texts, which hold no password."""

from __future__ import annotations

import re

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores.redis._wire import Refusal

# The master is another server, or is about to be: look for it anew.
ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED"})
# It passes: ask again. MAXCLIENTS and KILLED are names of ours, the server says ERR.
LATER = frozenset({"LOADING", "TRYAGAIN", "BUSY", "NOREPLICAS", "ASK", "NOSCRIPT", "MAXCLIENTS", "KILLED"})
# A login may have ended while the connection lived, as those by tokens do: a new connection decides.
LOGIN = frozenset({"NOAUTH", "WRONGPASS"})
# Only the node of a cluster says so.
OF_NODES = frozenset({"MOVED", "ASK", "CROSSSLOT"})

# Servers before Redis 7 wrap the error of a command that a script calls into the text of an ERR.
_WITHIN = re.compile(r"-?\b(READONLY|MISCONF|OOM|NOPERM|WRONGTYPE|NOREPLICAS|MASTERDOWN) ")
_OF_CLASSES = {  # of redis-py and valkey-py, whose errors have lost the code
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "AuthorizationError": "WRONGPASS",
    "AuthenticationError": "WRONGPASS",
    "ResponseError": "ERR",
}


def code_of(refusal: Refusal) -> str:
    """Return the code of an error, also where the server says ERR and has the code in the text."""
    if refusal.code != "ERR":
        return refusal.code
    if "max number of clients" in refusal.text:
        return "MAXCLIENTS"
    if "Script killed" in refusal.text:
        return "KILLED"
    within = _WITHIN.search(refusal.text)
    return within[1] if within else "ERR"


def refusal_of(error: Exception) -> Refusal | None:
    """Return what the server said when it refused to let the client's package log in; None if that is no such error."""
    if _is_of_certificates(error):
        return Refusal("CERTIFICATE", str(error))
    for kind in type(error).__mro__:
        code = _OF_CLASSES.get(kind.__name__)
        if code is not None:
            text = shown(str(error))
            return Refusal("NOAUTH" if code == "WRONGPASS" and "required" in text else code, text)
    return None


def _is_of_certificates(error: BaseException | None) -> bool:
    """Return whether a connection was not made because the client does not trust the server's certificate."""
    while error is not None:
        if type(error).__name__ == "SSLCertVerificationError":  # the package's own error has come of it
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(text: str) -> str:
    """Return a server's text without the arguments that some texts repeat: AUTH's are a name and a password."""
    return text.partition(", with args beginning with")[0]


def final(refusal: Refusal, location: str, key: str) -> StoreError | BudgetUnavailable:
    """Return the error for what the server refuses, and refuses again if it is asked again."""
    code, text = code_of(refusal), shown(refusal.text)
    if code == "MISCONF":
        return BudgetUnavailable(f"{location} takes no writes, because it cannot save to its disk: {text}")
    if code == "OOM":
        return BudgetUnavailable(f"{location} has no memory left for a write: give it more, or raise maxmemory. {text}")
    why = {
        "NOAUTH": "asks for a login: make the client with a password, and with a username where the server has users",
        "WRONGPASS": f"refuses the client's username or password: {text}",
        "NOPERM": f"forbids this user what a budget needs: {text}. It needs the keys and channels {key}*, the commands "
        "evalsha and script|load with all that the scripts call, and info",
        "CERTIFICATE": f"shows a certificate that the client does not trust: {text}",
        "WRONGTYPE": f"has other data in keys that begin with {key}: give the budget another name, or another database",
        **dict.fromkeys(OF_NODES, "is a node of a cluster: pass a RedisCluster or a ValkeyCluster"),
    }.get(code, f"refuses what a budget needs: {code} {text}")
    return StoreError(f"{location} {why}")
