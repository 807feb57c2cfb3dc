"""The answers about scenes in other languages; a colour that has no one name in a language is left out of it."""

from __future__ import annotations


def _words(yes_no: str, shapes: str, colors: dict[str, str], numbers: str) -> dict[str, str]:
    found = dict(zip(("yes", "no"), yes_no.split())) | dict(zip(("circle", "rectangle", "triangle"), shapes.split()))
    return found | colors | {str(number): word for number, word in enumerate(numbers.split())}


LANGUAGES = {
    "German": _words(
        "ja nein",
        "Kreis Rechteck Dreieck",
        {"black": "schwarz", "blue": "blau", "brown": "braun", "gray": "grau", "green": "grün", "red": "rot",
         "yellow": "gelb"},
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    ),
    "French": _words(
        "oui non",
        "cercle rectangle triangle",
        {"black": "noir", "blue": "bleu", "gray": "gris", "green": "vert", "red": "rouge", "yellow": "jaune"},
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
    ),
}  # fmt: skip
