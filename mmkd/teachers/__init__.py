"""Teachers: where the outputs to be imitated come from."""
