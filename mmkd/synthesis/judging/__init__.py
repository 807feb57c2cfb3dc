"""Scores of answers: by a model that sees the image, or by labels; and how far a judge can be trusted."""
