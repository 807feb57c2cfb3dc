"""Competitive distillation (CoMD, arXiv 2311.08213): what the student fails at decides what is asked next."""
