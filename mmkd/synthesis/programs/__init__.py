"""Visual programs: short Python functions over vision tools, run in a sandbox, verified, told as rationales.

with Runner() as runner:
    outcome = runner.run('def answer(image):\\n    return count(image, "red circle")', image, "how many red circles?")
"""
