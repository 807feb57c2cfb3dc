"""From rows to programs that hold and records with rationales: asking writers, running, choosing, counting."""
