"""The evolver that needs no endpoint: harder questions about scenes of coloured shapes, true by what the tools see."""
