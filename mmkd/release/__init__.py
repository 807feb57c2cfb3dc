"""Releases: a folder that transformers loads on its own, proven in a process without mmkd, with a model card."""
