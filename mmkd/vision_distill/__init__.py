"""Standalone distillation of vision models: a timm student learns to classify from a timm teacher of any family."""
