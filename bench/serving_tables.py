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


def serving_table(document: dict[str, Any]) -> str:
    """One row a figure of `serving.json`, with its goal where it has one, and a line on how."""
    by_name = {row["row"]: row for row in document["rows"]}
    cold, developing = by_name["cold start"], by_name["cold start, developing"]
    beside, partial = by_name["overhead"], by_name["first partial"]
    crowd = next(row for name, row in by_name.items() if name.endswith(" clients"))
    over, peer = by_name["overload"], by_name["diffusers behind the same server"]
    lost = sum(over["other"].values())
    clients, machine = crowd["row"], document["machine"]
    figures = (
        ("cold start to ready", _of(cold["seconds"], "{:.1f} s"), f"{cold['limit']:g} s"),
        ("the same beside developers' packages", _of(developing["seconds"], "{:.1f} s"), ""),
        (
            "a request beside its drawing, over a plain loop's",
            _of(beside["overhead"], "{:.1%}"),
            f"{beside['limit']:.0%}",
        ),
        ("its drawing, over the loop's", _of(beside["drawing_ratio"], "{:.2f}"), ""),
        (
            "first partial picture, of the whole request",
            _of(partial["share"], "{:.1%}"),
            f"{partial['limit']:.0%}",
        ),
        (
            f"{clients}: seconds by place in the queue, 99th centile over median",
            f"{crowd['p99_ratio']:.2f}",
            f"{crowd['limit']:g}",
        ),
        (
            f"{clients}: pictures a second, over one client's",
            f"{crowd['throughput_ratio']:.2f}",
            "",
        ),
        (
            f"twice the rate it can carry, {over['seconds']:.0f} s",
            f"{over['answered']} answered, {over['refused']} refused, {lost} lost; "
            f"memory {over['memory_growth']:+.1%}",
            "none lost",
        ),
        (
            "diffusers' pipeline behind the same server, over ours",
            _of(peer["ours_faster"], "{:.1f}"),
            "",
        ),
    )
    return "\n".join(
        [
            "| what | median (range or 95%) | goal |",
            "|---|---|---|",
            *(f"| {what} | {measured} | {goal} |" for what, measured, goal in figures),
            "",
            f"`{document['model']}` at {document['size'][0]}x{document['size'][1]}, preset "
            f"`{document['preset']}`, a queue of {document['queue']}, {machine['cores']} cores of "
            f"{machine['processor']}.",
        ]
    )


def _of(value: dict[str, float], form: str) -> str:
    shown = [form.format(value[name]) for name in ("median", "low", "high")]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


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
