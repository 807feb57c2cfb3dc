"""The family tree of one item that evolved: its seed, the versions that rounds made of it, and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from mmkd.report.album import Pictured
from mmkd.report.browse import MOST_CODE, Box, Node, Row, text
from mmkd.synthesis.evolving.items import Content, Step
from mmkd.synthesis.evolving.outcomes import Outcome


def family(rounds: Sequence[Outcome], picture: Pictured | None) -> Row:
    """An item as a row: the question as it stands, boxes of its steps, and a line for each version.

    A version stands one step to the right of its parent; one that was not kept has no children.

    Args:
        rounds: of one item, the seed first.
    """
    newest = rounds[-1].current
    depths: dict[str, int] = {}
    nodes, facets = [], []
    for one in rounds:
        parent = one.current.parent if one.kept else one.current.id
        depth = 1 + depths.get(parent or "", -1)
        if one.kept:
            depths[one.current.id] = depth
        nodes.append(_node(one, depth))
        outcome = "seed" if not one.round else "kept" if one.kept else "not kept"
        form = _content(one).form if _content(one) else ""
        facets.append([str(one.round), one.direction or "", outcome, text(one.kind, 80), form])
    row = Row(text(newest.content.question), facets, nodes=nodes)
    row.lines = [
        ("answer", text(newest.content.answer)),
        ("skills", ", ".join(newest.content.skills)),
        ("from", f"{text(rounds[0].item, 80)}, last changed in round {newest.round}"),
    ]
    if newest.model:
        row.lines.append(("model", text(newest.model, 120)))
    if picture:
        row.picture, row.boxes = picture.place, _boxes(newest.content)
    steps = [f"{place}. {_step(step)}" for place, step in enumerate(newest.content.steps, 1)]
    if steps:
        row.more.append(("steps of the answer", text("\n".join(steps), MOST_CODE)))
    return row


def _content(one: Outcome) -> Content | None:
    """What the round made, or proposed."""
    return one.current.content if one.kept else one.candidate


def _node(one: Outcome, depth: int) -> Node:
    content = _content(one)
    said = f"{text(content.question, 300)} – {text(content.answer, 120)}" if content else "(nothing that can be read)"
    if not one.round:
        return Node("seed", said, "", depth)
    head = f"round {one.round}, {one.direction}"
    if not one.kept:
        return Node(f"{head}, not kept: {text(one.kind, 80)}", f"{said}\n{text(one.reason, 300)}", "wrong", depth)
    if one.current.difficulty is not None and one.parent_difficulty is not None:
        head += f", difficulty {one.parent_difficulty:g} → {one.current.difficulty:g}"
    turned = ", the judge turned with the order" if one.turned else ""
    return Node(f"{head}, kept{turned}", said, "right", depth)


def _boxes(content: Content) -> list[Box]:
    found = []
    for place, step in enumerate(content.steps, 1):
        for left, top, right, bottom in step.boxes:
            at = (left, top, right - left, bottom - top)
            label = text(step.argument or step.result, 40)
            style = "found" if step.function == "grounding" else "given"
            found.append(Box(*(round(100 * one, 2) for one in at), f"{place} {label}", style))
    return found


def _step(step: Step) -> str:
    if step.function == "none":
        return step.description
    result = step.result or f"{len(step.boxes)} found"
    return f"{step.function}({step.argument}) → {result}  {step.description}".rstrip()
