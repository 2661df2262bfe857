"""Texts that the estimate is held against: prose, code, JSON, CSV and logs in ten languages, and other scripts.

The prose stands in `estimate_texts.json`. All of it is written for this project.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

_STORED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PROSE = _STORED["prose"]
OTHER_SCRIPTS = _STORED["other_scripts"]


def words(language: str) -> list[str]:
    """Return pieces of a language's prose: words, or runs of four signs where no blanks stand between words."""
    text = PROSE[language]
    found = text.split()
    return found if len(found) > 20 else [text[i : i + 4] for i in range(0, len(text), 4)]


def code(language: str) -> str:
    """Return a program whose comments and strings are of a language."""
    pick = random.Random(language)
    told = words(language)

    def say(count: int) -> str:
        return " ".join(pick.choice(told) for _ in range(count))

    lines = ["import asyncio", "from dataclasses import dataclass, field", ""]
    for number in range(6):
        lines += [
            "@dataclass(frozen=True)",
            f"class Account{number}(Base):",
            f'    """{say(9)}"""',
            f"    balance_nanos: int = {pick.randrange(10**9)}",
            "    entries: list[tuple[str, int]] = field(default_factory=list)",
            "",
            f"    async def charge_{number}(self, amount: int, *, reason: str | None = None) -> int:",
            f"        if amount < 0 or self.balance - amount < -{pick.randrange(1000)}:",
            f'            raise ValueError(f"{say(5)}: {{amount!r}}")  # {say(6)}',
            f"        self.entries.append((reason or {say(1)!r}, amount << {number}))",
            f"        await asyncio.sleep(0.{pick.randrange(100):02})",
            "        return sum(value for _, value in self.entries if value % 7 != 0)",
            "",
        ]
    return "\n".join(lines)


def rows(language: str) -> list[dict[str, object]]:
    """Return records of orders, with names and remarks of a language."""
    pick = random.Random(language + "rows")
    told = words(language)
    return [
        {
            "id": pick.randrange(10**7),
            "name": " ".join(pick.choice(told) for _ in range(2)),
            "price": round(pick.random() * 900, 2),
            "created_at": f"2026-{pick.randrange(1, 13):02}-{pick.randrange(1, 29):02}T{pick.randrange(24):02}:05:09Z",
            "active": pick.random() < 0.5,
            "tags": [pick.choice(told) for _ in range(2)],
            "remark": " ".join(pick.choice(told) for _ in range(8)),
        }
        for _ in range(12)
    ]


def table(language: str) -> str:
    """Return the records as CSV."""
    found = rows(language)
    lines = [",".join(found[0])]
    lines += [
        ",".join(f'"{value}"' if isinstance(value, str) else str(value) for value in row.values()) for row in found
    ]
    return "\n".join(lines)


def log(language: str) -> str:
    """Return a log whose messages are of a language."""
    pick = random.Random(language + "log")
    told = words(language)
    return "\n".join(
        f"2026-11-{pick.randrange(1, 29):02} {pick.randrange(24):02}:{pick.randrange(60):02}:07,"
        f"{pick.randrange(1000):03} "
        f"{pick.choice(['INFO', 'WARNING', 'ERROR'])} [worker-{pick.randrange(32)}] app.orders.service: "
        f"{' '.join(pick.choice(told) for _ in range(7))} order={pick.randrange(10**6)} took={pick.randrange(900)}ms "
        f"ip=10.{pick.randrange(256)}.{pick.randrange(256)}.{pick.randrange(256)}"
        for _ in range(20)
    )


def kinds(language: str) -> dict[str, str]:
    """Return the texts of a language, by kind."""
    found = rows(language)
    return {
        "prose": PROSE[language],
        "code": code(language),
        "JSON": json.dumps(found, ensure_ascii=False),
        "indented JSON": json.dumps(found, ensure_ascii=False, indent=2),
        "escaped JSON": json.dumps(json.dumps(found[:4], ensure_ascii=False), ensure_ascii=False),
        "CSV": table(language),
        "log": log(language),
    }


def other_kinds() -> dict[str, str]:
    """Return texts that no rule was fitted to."""
    pick = random.Random(5)
    every = range(20)
    return {
        "HTML": "".join(
            f'<li class="card-{i} mt-2"><a href="/items/{i}?ref=home&amp;x=1">Item {i}</a></li>\n' for i in every
        ),
        "SQL": "".join(
            f"SELECT u.id, SUM(o.total) AS sum_{i} FROM users u JOIN orders o ON o.user_id = u.id WHERE u.age > {i};\n"
            for i in every
        ),
        "C": "".join(f"static int hash_{i}(const char *p) {{\n\treturn (*p << {i}) ^ 0x811c{i}u;\n}}\n" for i in every),
        "YAML": "".join(f"- name: svc-{i}\n  image: local/app:{i}.2\n  limits: {{cpu: {i}00m}}\n" for i in every),
        "a table in Markdown": "".join(f"| {i} | user {i} | {pick.random():.4f} |\n" for i in every),
        "bytes in hexadecimal": " ".join(f"{pick.randrange(256):02x}" for _ in range(300)),
        "a traceback": "".join(
            f'  File "/usr/lib/app/mod_{i}/views.py", line {i * 37}, in handle\n    return self.run(*args)\n'
            for i in every
        ),
        "numbers": " ".join(f"{pick.gauss(0, 1):.6e}" for _ in range(100)),
        "phone numbers": "\n".join(f"+49 {pick.randrange(999)} {pick.randrange(10**7)}" for _ in range(60)),
        "capitals": "THE SYSTEM SHALL NOT ALLOW ANY WORKER TO SPEND MORE THAN THE BUDGET THAT WAS SET BY ITS OWNER. "
        * 3,
    }
