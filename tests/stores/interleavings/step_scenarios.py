"""What clients do at once."""

from __future__ import annotations

from interleavings.step_runs import Scenario

_FEW = ("dies after", "is lost")  # for what takes many steps: all kinds of faults meet them elsewhere

LAST_ROOM = Scenario(
    "two reserves for the last room over two scopes",
    {"": 10, "a": 8, "b": 8},
    {
        "A": (("reserve", "x", "a", 6), ("commit", "x", 5)),
        "B": (("reserve", "y", "b", 5), ("commit", "y", 5)),
    },
)
JOINED = Scenario(
    "two reserves over a join",
    {"": 20, "a": 8, "b": 8},
    {
        "A": (("reserve", "x", "a+b", 6), ("release", "x")),
        "B": (("reserve", "y", "b", 5), ("commit", "y", 3)),
    },
    split=False,
)
AGAIN = Scenario(
    "a reserve that had no answer is repeated at once",
    {"": 10, "a": 8},
    {"A": (("reserve", "x", "a", 6), ("commit", "x", 5)), "B": (("reserve", "y", "a", 5),)},
    again=True,
    faulty=("A",),
)
COMMIT = Scenario(
    "reserve and commit against reserve",
    {"": 10, "a": 10},
    {
        "A": (("reserve", "x", "a", 6), ("commit", "x", 2)),
        "B": (("reserve", "y", "a", 6), ("release", "y"), ("record", "a", 4)),
    },
)
RESET = Scenario(
    "record against reset",
    {"": 10, "a": 6},
    {"A": (("record", "a", 4),), "B": (("reset", "a"),)},
    setup=(("A", ("record", "a", 2)),),
    split=False,
    faulty=("A",),
)
LATE = Scenario(
    "commit against expire of its holder, which lives",
    {"": 10, "a": 10},
    {"A": (("commit", "x", 2),), "reaper A": (), "B": (("reserve", "y", "a", 6),)},
    setup=(("A", ("reserve", "x", "a", 6)),),
    faulty=("A",),
)
BURY = Scenario(
    "two clients charge a dead one at once",
    {"": 10, "a": 10},
    {"B": (("record", "a", 6),), "C": (("reserve", "z", "a", 5),)},
    setup=(("A", ("reserve", "x", "a", 6)), ("", ("kill", "A"))),
    faulty=(),
)
BURY_FAILS = Scenario(
    "who charges a dead one dies or gets no answer",
    {"": 10, "a": 10},
    {"B": (("record", "a", 6),), "C": (("reserve", "z", "a", 2),)},
    setup=(("A", ("reserve", "x", "a", 6)), ("", ("kill", "A"))),
)
LATE_RESET = Scenario(
    "a late commit after a reset",
    {"": 10, "a": 10},
    {"A": (("commit", "x", 7),), "B": (("reset", "a"), ("record", "a", 2))},
    setup=(("A", ("reserve", "x", "a", 6)), ("", ("kill", "A")), ("B", ("expired",))),
    split=False,
    over=True,
    faulty=("A",),
    faults=_FEW,
)
SETTLE = Scenario(
    "settle against late commit",
    {"": 10, "a": 10},
    {"A": (("commit", "x", 4),), "B": (("settle", "x", 3),)},
    setup=(("A", ("reserve", "x", "a", 6)), ("", ("kill", "A")), ("B", ("expired",))),
)
WAITERS = Scenario(
    "two waiters and a freeing commit",
    {"": 10, "a": 10},
    {
        "A": (("commit", "x", 3),),
        "B": (("wait", "y", "a", 5), ("leave", "y")),
        "C": (("wait", "z", "a", 4), ("wait", "z", "a", 4)),
    },
    setup=(("A", ("reserve", "x", "a", 10)), ("B", ("wait", "y", "a", 5))),
    faulty=("B",),
    faults=("is lost", "is late"),
)
OVERTAKE = Scenario(
    "nobody overtakes who waits",
    {"": 10, "a": 10, "b": 9},
    {
        "A": (("wait", "y", "a", 6),),
        "B": (("commit", "x", 3),),
        "C": (("reserve", "z", "b", 1), ("record", "a", 1)),
    },
    setup=(("B", ("reserve", "x", "a", 6)), ("A", ("wait", "y", "a", 6))),
    faulty=("A",),
)
CANCEL = Scenario(
    "cancel against grant",
    {"": 10, "a": 10},
    {
        "A": (("wait", "y", "a", 5), ("cancel", "y")),
        "B": (("commit", "x", 3), ("reserve", "z", "a", 6)),
    },
    setup=(("B", ("reserve", "x", "a", 10)), ("A", ("wait", "y", "a", 5))),
    faulty=("A",),
)
CANCEL_THREADS = Scenario(
    "cancel by another thread while the claim is reserved",
    {"": 10, "a": 10},
    {"A": (("reserve", "y", "a", 5),), "A2": (("cancel", "y"),), "B": (("reserve", "z", "a", 6),)},
    calls=True,
    faulty=(),
)
CAPS = Scenario(
    "set_caps against reserve",
    {"": 10, "a": 10},
    {"A": (("reserve", "x", "a", 6), ("commit", "x", 6)), "B": (("set_caps", "a", 5),)},
    over=True,
    faulty=("B",),
    faults=_FEW,
)
ROLL = Scenario(
    "two clients roll a scope over at once",
    {"": 20, "a": 10},
    {"A": (("record", "a", 6),), "B": (("record", "a", 4),)},
    setup=(("A", ("record", "a", 7)), ("B", ("reserve", "x", "a", 1)), ("", ("turn",))),
    windows=("a",),
    split=False,
    faulty=("A",),
    faults=_FEW,
)
CLOCK = Scenario(
    "a period ends while clients spend",
    {"": 20, "a": 10},
    {"A": (("record", "a", 6),), "clock": (), "B": (("commit", "x", 3),)},
    setup=(("B", ("reserve", "x", "a", 4)),),
    windows=("a",),
    calls=True,
    split=False,
    faulty=("A",),
    faults=("dies after",),
)
OPENING = Scenario(
    "two clients open a scope at once, with other caps",
    {"": 20},
    {
        "A": (("open", "c", 10), ("record", "c", 6)),
        "B": (("open", "c", 8),),
    },
    late_opened=("c",),
    over=True,
    faulty=("A",),
    faults=_FEW,
)
KEY = Scenario(
    "two clients make a key at once",
    {"": 20},
    {"A": (("record", "u:ann", 6),), "B": (("reserve", "y", "u:ann", 5),)},
    groups={"u": 10},
    faulty=("A",),
    faults=("is lost",),
)
HAND = Scenario(
    "hand_over against a crash",
    {"": 10, "a": 10},
    {"A": (("reserve", "x", "a", 6), ("hand_over", "x")), "B": (("reserve", "y", "a", 5),)},
    faulty=("A",),
)
HANDED = Scenario(
    "what was handed over is settled while its holder dies",
    {"": 10, "a": 10},
    {"A": (("hand_over", "x"), ("reserve", "z", "a", 1)), "B": (("settle", "x", 2),)},
    setup=(("A", ("reserve", "x", "a", 6)),),
    faulty=("A",),
)
CLOSING = Scenario(
    "reserve against close",
    {"": 10, "a": 8},
    {"A": (("reserve", "x", "a", 5), ("commit", "x", 4)), "B": (("close", "a"),)},
    faulty=("A",),
)
THREE = Scenario(
    "three clients and room for two",
    {"": 10, "a": 9, "b": 9},
    {
        "A": (("reserve", "x", "a", 5), ("commit", "x", 4)),
        "B": (("reserve", "y", "b", 5), ("commit", "y", 4)),
        "C": (("record", "a", 2),),
    },
    faulty=(),
)
ALL = (
    LAST_ROOM, JOINED, AGAIN, COMMIT, RESET, LATE, BURY, BURY_FAILS, LATE_RESET, SETTLE, WAITERS, OVERTAKE, CANCEL,
    CANCEL_THREADS, CAPS, ROLL, CLOCK, OPENING, KEY, HAND, HANDED, CLOSING, THREE,
)  # fmt: skip
