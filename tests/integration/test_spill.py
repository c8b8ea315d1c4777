"""Results that do not fit the frame at hand: they take another way, and none may be changed, lost or early."""

import pytest


def results(outcome):
    return outcome.out.split(b"\n")[:-1]


def lines_of_three(outcome):
    """Results of one line stay together; among themselves their order is that in which workers were done."""
    got = results(outcome)
    return [sorted(got[i : i + 3]) for i in range(0, len(got), 3)]


def jobs(sizes):
    """Each becomes three results, "TEXT 1" to "TEXT 3"; TEXT differs from job to job."""
    return [b"emit 3 %d %s" % (i, bytes([97 + i % 26]) * size) for i, size in enumerate(sizes)]


SIZES = [3, 7000, 5, 4000, 4000, 8000, 1, 2000, 2600, 2650, 2670, 2700, 7900, 10] * 20


def test_several_results_of_one_line_keep_their_order_in_one_lane(world):
    lines = jobs(SIZES)
    outcome = world.run("-k", "actor", input=b"".join(line + b"\n" for line in lines))
    assert results(outcome) == [b"%s %d" % (line[len(b"emit 3 "):], i) for line in lines for i in (1, 2, 3)]


@pytest.mark.parametrize("stages", [["actor"], ["actor", "identity"], ["batch-actor", "identity:workers=3"]])
def test_several_results_that_overflow_their_frame_arrive_whole_and_in_order(world, stages):
    lines = jobs(SIZES)
    outcome = world.run("-k", *stages, input=b"".join(line + b"\n" for line in lines))
    expected = [[b"%s %d" % (line[len(b"emit 3 "):], i) for i in (1, 2, 3)] for line in lines]
    assert outcome.code == 0, outcome.err
    assert lines_of_three(outcome) == expected
    assert b"%d jobs done, 0 failed" % len(lines) in outcome.err


def test_results_that_find_the_frame_half_full_arrive_whole_and_are_counted_once(world):
    """The first of several goes past a frame that other jobs have begun, small ones after it must not go into it."""
    lines, expected = [], []
    for i in range(60):
        lines += [b"%d %s" % (100 + i, b"w" * (2500 + 10 * i)), b"emit 3 %d %s" % (i, b"v" * (6600 - 10 * i))]
        lines += [b"grow 3000", b"sizes 6000 3 3"]
        expected += [[lines[-4]], [b"%d %s %d" % (i, b"v" * (6600 - 10 * i), k) for k in (1, 2, 3)]]
        expected += [None, [b"1" * 6000, b"2" * 3, b"3" * 3]]
    outcome = world.run("-k", "-j", "1", "actor", input=b"".join(line + b"\n" for line in lines))
    assert outcome.code == 0, outcome.err
    got = results(outcome)
    for want in expected:
        n = 1 if want is None else len(want)
        mine, got = got[:n], got[n:]
        assert want is None or mine == want
    assert got == []
    assert b"%d jobs done, 0 failed" % len(lines) in outcome.err


def test_every_place_at_which_a_frame_can_end_is_passed_whole(world):
    lines = jobs(range(1200, 2900, 7))
    outcome = world.run("-k", "actor", "identity:workers=2", input=b"".join(line + b"\n" for line in lines))
    expected = [[b"%s %d" % (line[len(b"emit 3 "):], i) for i in (1, 2, 3)] for line in lines]
    assert outcome.code == 0, outcome.err
    assert lines_of_three(outcome) == expected


def test_a_note_longer_than_the_next_queues_frames_is_cut_not_fatal(world):
    config = world.write(
        "small.conf",
        """
        stages = (
          { name = "first"; use = "actor"; },
          { name = "second"; use = "identity"; queue = { message = "256 B"; }; }
        );
        """,
    )
    outcome = world.run("-c", config, input=b"fail " + b"x" * 400 + b"\nfine\n")
    assert outcome.code == 1
    assert outcome.out == b"fine\n"
    assert outcome.err.count(b"line 1: xxxxx") == 1
