"""Stored results of servers as the Markdown that docs/serve.md shows."""

from __future__ import annotations

from typing import Any

PARTS = {
    "mixed": "{clients} clients at once",
    "overload": "twice the rate it can carry",
    "in_flight": "killed meanwhile",
    "after": "after the new start",
    "accepted": "accepted before a SIGTERM",
    "newcomers": "new after a SIGTERM",
}
"""Keys of rows of stress.json whose values are ends of requests, and what they are called."""


def stress_table(document: dict[str, Any]) -> str:
    """One row a part and kind of request of `stress.json`, and a line on everything else in it."""
    by_name = {row["row"]: row for row in document["rows"]}
    load, kill, drain = by_name["load"], by_name["kill"], by_name["drain"]
    lines = ["| when | request | how many ended how |", "|---|---|---|"]
    for row in (load, kill, drain):
        for part in (each for each in PARTS if each in row):
            for kind, ends in row[part].items():
                said = ", ".join(f"{number} {end}" for end, number in ends.items())
                lines.append(f"| {PARTS[part].format(**document)} | {kind} | {said} |")
    machine, memory = document["machine"], load["resident_bytes"]
    codes = ", ".join(map(str, drain["exit_codes"]))
    lines += [
        "",
        f"The server held {memory['warm'] / 1e6:.0f} MB when it was warm and "
        f"{memory['end'] / 1e6:.0f} MB {load['seconds']:.0f} s of load later. After "
        f"{kill['rounds']} kills every client had its error within {kill['told_seconds']:.2f} s, "
        f"and a new server was ready after {kill['restart_seconds']:.1f} s. After a SIGTERM it "
        f"ended within {drain['seconds']:.1f} s, with the exit codes {codes}. "
        f"`{document['model']}` at {document['size']}, preset `{document['preset']}`, a queue of "
        f"{document['queue']}, {machine['cores']} cores of {machine['processor']}.",
    ]
    return "\n".join(lines)
