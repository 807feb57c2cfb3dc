"""What evolve and compete come through, counted by the tests that put them there: `python -m bench.endurance`.

    killed    SIGKILL at random moments, until a run ends: its final files are held against those of a run that nobody
              stopped, and every request that is sent against those whose reply was kept
    faults    each fault of the tests' proxy, at random, between the client and a server: every item has to end

The tests assert it and tell pytest their counts; a figure here is one of a test that passed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.passed import told
from bench.rows import RESULTS, Row, append, config_hash, surroundings

BENCH = "endurance"
TESTS = {
    "evolve killed": "tests/synthesis/evolving/test_run.py::"
    "test_killed_again_and_again_it_ends_with_the_same_records_and_pays_no_reply_twice",
    "compete killed": "tests/synthesis/competing/test_kill.py::"
    "test_killed_again_and_again_it_ends_with_the_same_records_and_pays_no_reply_twice",
    "client faults": "tests/synthesis/test_faults.py::"
    "test_through_all_faults_every_item_ends_and_none_is_scored_from_garbage",
    "evolve faults": "tests/synthesis/evolving/test_run.py::"
    "test_a_real_server_behind_faults_loses_no_item_and_scores_no_garbage",
    "compete faults": "tests/synthesis/competing/test_faults.py::"
    "test_every_item_ends_with_a_true_score_or_a_reason_and_is_paid_once",
}


def counted(test: str, kills: int) -> dict[str, float]:
    """What a test tells of itself. Raises DataError where it does not pass."""
    [(_, _, found)] = told(test, {"MMKD_KILLS": str(kills)})
    return found


def main(asked: argparse.Namespace) -> None:
    around = surroundings()
    for case in asked.cases:
        found = counted(TESTS[case], asked.kills)
        print(case, found)
        if "items" in found:
            found["lost"] = found["items"] - found["done"] - found["rejected"]
        digest = config_hash({"case": case, "kills": asked.kills})
        command = f"python -m bench.{BENCH} --kills {asked.kills}"
        append(
            [
                Row(BENCH, f"{name}@{case}", value, name.replace("_", " "), (0,), None, None, command, digest, **around)
                for name, value in found.items()
            ],
            asked.results,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=f"python -m bench.{BENCH}", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(TESTS), default=list(TESTS), help="what is tried")
    parser.add_argument("--kills", type=int, default=27, help="meant of each run, which may end before the last ones")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    main(parser.parse_args())
