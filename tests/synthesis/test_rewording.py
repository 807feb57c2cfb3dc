"""Which words of a model may stand for a template's question: those to which the template's answer is still right."""

from __future__ import annotations

import pytest

from mmkd.synthesis.rewording import EXAMPLES, objection


@pytest.mark.parametrize(
    ("asked", "reworded"),
    [
        ("how many red shapes and circles are there together?",
         "how many red shapes and circles can you see together?"),
        ("how many red shapes and circles are there together?",
         "Counting together, how many red shapes and circles are in view?"),
        ("how many red circles are there?", "How many red circles does this picture show in total?"),
        ("is there a gray shape?", "Can you find a grey shape in the image?"),
        ("is there a red shape left of the circle?", "Do you see a red shape to the left of the circle?"),
        ("what shape is left of the red circle?", "Which shape is on the left side of the red circle?"),
        ("what is the color of the shape above the circle?", "Tell me: what colour is the shape above the circle?"),
        ("is the number of red shapes equal to the number of circles?",
         "Does the number of red shapes equal the number of circles?"),
        *EXAMPLES,
    ],
)  # fmt: skip
def test_another_way_of_asking_the_same_is_taken(asked, reworded):
    assert objection(asked, reworded) == ""


@pytest.mark.parametrize(
    ("asked", "reworded", "why"),
    [
        ("how many red circles are there?", "how many blue circles are there?", "other things"),
        ("how many red circles are there?", "how many red triangles are there?", "other things"),
        ("how many red circles are there?", "how many circles are there?", "other things"),
        ("are there more red shapes than circles?", "are there more circles than red shapes?", "other things"),
        ("is there a circle left of the red shape?", "is there a circle right of the red shape?", "other things"),
        ("is there a circle left of the red shape?", "is there a circle left and of the red shape?", "other things"),
        ("what shape is above the shape that is left of the red circle?",
         "what shape is left of the shape that is above the red circle?", "other things"),
        ("are there more red shapes than circles?", "are there fewer red shapes than circles?", "another question"),
        ("is there a red circle?", "where is the red circle?", "words that may"),
        ("is there a red circle?", "how many red circles are there?", "another question"),
        ("is there a red circle?", "what is the red circle?", "another question"),
        ("how many red circles are there?", "is there a number of red circles?", "another question"),
        ("what shape is left of the red circle?", "what is the color of the shape left of the red circle?", "another"),
        ("is there a red circle?", "is there one red circle?", "another question"),
        ("is there a red circle?", "is there a small red circle?", "words that may"),
        ("is there a red circle?", "is there a red circle in the corner?", "words that may"),
        ("is there a red circle?", "is there only a red circle?", "words that may"),
        ("is there a red circle?", "isn't there a red circle?", "words that may"),
        ("is there a red circle?", "is it a red circle?", "words that may"),
        ("how many red circles are there?", "how many red circles and objects are there?", "words that may"),
        ("is there a red circle?", "is there a red circle or not?", "words that may"),
        ("how many circles are there?", "there are 3 circles?", "another question"),
        ("how many circles are there?", "how many circles are there? two?", "not one question"),
        ("how many circles are there?", "How many circles are there. Sure!", "not one question"),
        ("how many circles are there?", "", "not one question"),
        ("how many circles are there?", "?", "not one question"),
        ("how many circles are there?", "<|im_start|> how many circles are there?", "not one question"),
        ("how many circles are there?", "can you please tell me " * 4 + "how many circles are there?", "long"),
    ],
)  # fmt: skip
def test_words_that_might_ask_something_else_are_refused(asked, reworded, why):
    assert why in objection(asked, reworded)
