"""What a page says of the reference run that ships: its plan, whether it was kept, and how well the device was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainfm_lib.config import load_profile
from brainfm_lib.pretrain.compute import pretraining_cost
from brainfm_lib.reference.plan import Part

NONE = (
    "No reference run ships with this version. This makes one, and puts it where this page finds it:\n\n"
    "```shell\nbrainfm reference my-reference --minutes 25\ncp -r my-reference/results/. book/reference/\n```\n"
)
PURPOSES = {"render": "rendering", "train": "training", "judge": "judging"}  # first word of a piece -> part of the plan


def told(summary: Mapping[str, Any] | None) -> str:
    """Markdown of a run's ``reference.json``, or how to make one where there is none."""
    if summary is None:
        return NONE
    plan, log, busy = summary["plan"], summary["log"], summary["busy"]
    compiled = ", blocks compiled" if plan["compiled"] else ""
    taken, budget = summary["seconds"] / 60, summary["minutes"]
    more = f" (planned for {plan['minutes']:g})" if budget != plan["minutes"] else ""
    lines = [f"Made on {plan['device']}{compiled}, in {taken:.1f} of {budget:g} minutes{more}. Phantom results.\n"]
    lines += ["| profile | work | planned, s | taken, s |", "|---|---|---:|---:|"]
    for part in plan["parts"]:
        for word, purpose in PURPOSES.items():
            pieces = [p["seconds"] for p in log if p["what"].split()[:2] == [word, part["profile"]]]
            lines.append(f"| {part['profile']} | {purpose} | {part['seconds'][purpose]:,.0f} | {sum(pieces):,.0f} |")
    lines += ["", "| training | volumes | volumes/s | TFLOP/s | device busy |", "|---|---:|---:|---:|---:|"]
    parts = {part["profile"]: Part(**part) for part in plan["parts"]}
    for piece in log:
        word, profile, *rest = piece["what"].split()
        if word != "train" or not piece["finished"]:
            continue
        seed = int(rest[-1])
        for arm, rate in piece["rates"].items():
            cost = pretraining_cost(load_profile(profile, parts[profile].overrides).pretraining(arm, seed))
            share = f"{busy[piece['what']]:.0%}" if piece["what"] in busy else "–"
            teraflops = cost.flops / cost.volumes * rate / 1e12
            row = f"| {profile}, {arm}, seed {seed} | {piece['volumes']:,} | {rate:,.0f} | {teraflops:.3g} | {share} |"
            lines.append(row)
    return "\n".join(lines) + "\n"
