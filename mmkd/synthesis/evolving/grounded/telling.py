"""A plan as a version's fields: skills, steps with what the tools gave, a question in one of the task forms."""

from __future__ import annotations

import random

from mmkd.synthesis.evolving.grounded.forms import asked
from mmkd.synthesis.evolving.grounded.plans import Plan, answer
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.grounded.steps import skills, steps
from mmkd.synthesis.evolving.items import Content


def told(plan: Plan, form: str, sight: Sight, rng: random.Random) -> Content | None:
    """None where this question has no such form."""
    right = answer(plan, sight)
    one = None if right is None else asked(plan, form, right, sight, rng)
    if one is None:
        return None
    return Content.model_validate(
        {
            "objects": list(dict.fromkeys(one.objects or plan.words)),
            "skills": [*skills(plan), *one.skills],
            "steps": one.steps or [*steps(plan, sight), *one.more],
            "form": form,
            "question": one.question,
            "answer": one.answer,
        }
    )
