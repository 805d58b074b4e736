"""The tests leave no process behind."""

import time

from launch import alive, descendants, kill_what_is_left, start


def test_a_job_that_a_failing_test_has_left_is_killed_with_its_ranks() -> None:
    job = start(2, "-c", "import time; time.sleep(60)")
    deadline = time.monotonic() + 30
    while len(ranks := descendants(job.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_what_is_left()
    assert job.poll() is not None
    while any(map(alive, ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
