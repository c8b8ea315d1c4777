"""sluicectl run: lines in, results out."""

import json
import os
import re
import resource
import signal
import subprocess

import pytest
from harness import SLUICECTL, is_alive, kill, numbers_in, queue_exists, wait_for, workers_of


def lines(*texts, end="\n"):
    return "".join(t + end for t in texts).encode()


def seq(first, last):
    return "".join(f"{n}\n" for n in range(first, last + 1)).encode()


def primes(outcome):
    return outcome.out.count(b" prime\n")


# ---- numbers ----


def test_168_of_the_first_thousand_numbers_are_prime(world):
    outcome = world.run("prime", input=seq(0, 998))
    assert (outcome.code, primes(outcome), outcome.out.count(b"\n")) == (0, 168, 999), outcome
    assert b"999 jobs done, 0 failed" in outcome.err


def test_78498_of_the_first_million_are_prime_and_each_is_there_once(world):
    outcome = world.run("prime", input=seq(1, 1000000))
    assert (outcome.code, primes(outcome)) == (0, 78498), outcome
    assert sorted(numbers_in(outcome.out)) == list(range(1, 1000001))


def test_a_source_of_its_own_ends_the_run(world):
    outcome = world.run("range:from=1,to=1000000", "prime")
    assert (outcome.code, primes(outcome)) == (0, 78498), outcome
    assert outcome.out.count(b"\n") == 1000000


def test_zero_is_a_number_like_any_other(world):
    outcome = world.run("--keep-order", "prime", input=lines("7", "0", "0", "0", "11", "0"))
    assert outcome.code == 0, outcome
    assert outcome.lines() == ["7 prime", "0 neither", "0 neither", "0 neither", "11 prime", "0 neither"]


def test_stages_without_a_source_from_a_file(world):
    config = world.write("p.conf", 'stages = ( { use = "prime"; workers = 3; }, { use = "identity"; } );')
    outcome = world.run("-c", config, input=seq(0, 998))
    assert (outcome.code, primes(outcome)) == (0, 168), outcome


# ---- order ----


@pytest.mark.parametrize("options", [("--workers", "4"), ("--workers", "1"), ()])
def test_keep_order_through_several_stages(world, options):
    outcome = world.run("--keep-order", *options, "identity", "prime", "identity", input=seq(1, 100000))
    assert outcome.code == 0, outcome
    assert numbers_in(outcome.out) == list(range(1, 100001))


def test_keep_order_when_jobs_take_different_times(world):
    jobs = [f"sleep {(n * 7) % 13}" for n in range(200)]
    outcome = world.run("--keep-order", "--workers", "4", "actor", input=lines(*jobs))
    assert outcome.code == 0, outcome
    assert outcome.lines() == jobs


def test_keep_order_of_a_source(world):
    outcome = world.run("--keep-order", "--workers", "3", "range:from=5,to=50000", "prime")
    assert outcome.code == 0, outcome
    assert numbers_in(outcome.out) == list(range(5, 50001))


def test_one_worker_keeps_the_order_by_itself(world):
    outcome = world.run("--workers", "1", "identity", "prime", input=seq(1, 20000))
    assert numbers_in(outcome.out) == list(range(1, 20001)), outcome


# ---- input and output ----


def test_failed_lines_are_named_and_are_no_results(world):
    outcome = world.run("prime", input=lines("3", "abc", "4", "-5", "", "17x", "5"))
    assert outcome.code == 1, outcome
    assert sorted(outcome.lines()) == ["3 prime", "4 composite", "5 prime"]
    complaints = sorted(outcome.complaints())
    assert [c.split(":")[0] for c in complaints] == ["line 2", "line 4", "line 5", "line 6"]
    assert all(len(c.split(": ", 1)[1]) > 10 for c in complaints), complaints
    assert b"3 jobs done, 4 failed" in outcome.err


def test_a_carriage_return_is_no_part_of_a_number_but_of_other_lines(world):
    outcome = world.run("--keep-order", "prime", input=b"2\r\n9\r\n11\n")
    assert (outcome.code, outcome.out) == (0, b"2 prime\n9 composite\n11 prime\n"), outcome
    assert world.run("identity", input=b"a\r\n").out == b"a\r\n"


def test_no_input_no_output(world):
    outcome = world.run("prime", input=b"")
    assert (outcome.code, outcome.out) == (0, b""), outcome
    assert b"0 jobs done" in outcome.err


def test_the_last_line_needs_no_newline(world):
    outcome = world.run("--keep-order", "prime", input=b"2\n3")
    assert (outcome.code, outcome.out) == (0, b"2 prime\n3 prime\n"), outcome


def test_empty_lines_are_jobs(world):
    outcome = world.run("--keep-order", "identity", input=b"\n\na\n\n")
    assert (outcome.code, outcome.out) == (0, b"\n\na\n\n"), outcome


def test_null_separates_input_and_output(world):
    outcome = world.run("--null", "--keep-order", "identity", input=b"a\nb\0\0c d\0e")
    assert (outcome.code, outcome.out) == (0, b"a\nb\0\0c d\0e\0"), outcome


def test_every_byte_but_the_separator_passes(world):
    every = bytes(b for b in range(256) if b != 10) * 3
    outcome = world.run("--keep-order", "identity", "identity", input=every + b"\n" + every + b"\n")
    assert (outcome.code, outcome.out) == (0, every + b"\n" + every + b"\n")


def test_a_line_too_large_for_a_frame_fails_alone(world):
    outcome = world.run("--keep-order", "identity", input=b"a\n" + b"x" * 100000 + b"\nb\n")
    assert (outcome.code, outcome.out) == (1, b"a\nb\n"), outcome
    (complaint,) = outcome.complaints()
    assert complaint.startswith("line 2: 100000 bytes are more than"), complaint


def test_the_largest_line_that_fits_passes_and_one_byte_more_does_not(world):
    limit = int(world.run("identity", input=b"x" * 100000).complaints()[0].split("(")[1].split(")")[0])
    assert limit > 1000
    outcome = world.run("identity", "identity", input=b"x" * limit + b"\n")
    assert (outcome.code, len(outcome.out)) == (0, limit + 1), outcome
    assert world.run("identity", input=b"x" * (limit + 1)).code == 1


def test_a_result_too_large_for_a_frame_fails_its_job(world):
    limit = int(world.run("identity", input=b"x" * 100000).complaints()[0].split("(")[1].split(")")[0])
    outcome = world.run("--keep-order", "actor", input=lines("a", f"grow {limit}", f"grow {limit + 1}", "b"))
    assert (outcome.code, outcome.lines()) == (1, ["a", "x" * limit, "b"]), outcome
    assert outcome.complaints()[0].startswith(f"line 3: cannot emit {limit + 1} bytes")


def test_lines_come_out_as_soon_as_they_are_done(world):
    job = world.start(SLUICECTL, "run", "prime", stdin=subprocess.PIPE)
    for n, answer in ((2, b"2 prime\n"), (4, b"4 composite\n"), (5, b"5 prime\n")):
        before = job.out()
        job.write(f"{n}\n".encode())
        wait_for(lambda: job.out() == before + answer, "the answer to a lone job")
    job.close_input()
    assert job.wait().code == 0


def test_the_result_of_a_slow_job_is_not_held_back_by_the_next(world):
    job = world.start(SLUICECTL, "run", "--workers", "1", "actor", stdin=subprocess.PIPE)
    job.write(lines("sleep 10", "hang", "b"))
    wait_for(lambda: job.out() == b"sleep 10\n", "the result before the job that hangs")
    job.signal(signal.SIGINT)
    job.signal(signal.SIGTERM)
    assert job.wait().code == 130


# ---- several results, none, retries ----


@pytest.mark.parametrize("actor", ["actor", "batch-actor"])
def test_several_results_and_none_in_input_order(world, actor):
    jobs = [f"{n % 4} x" for n in range(3000)]
    expected = [r for job in jobs for r in (["x"] if job[0] == "1" else [f"x {i}" for i in range(1, int(job[0]) + 1)])]
    outcome = world.run("--keep-order", "--workers", "3", actor, input=lines(*jobs))
    assert outcome.code == 0, outcome
    assert outcome.lines() == expected
    assert b"3000 jobs done, 0 failed" in outcome.err
    outcome = world.run("--workers", "3", actor, input=lines(*jobs))
    assert sorted(outcome.lines()) == sorted(expected)
    assert b"3000 jobs done, 0 failed" in outcome.err


@pytest.mark.parametrize("actor", ["actor", "batch-actor"])
def test_results_that_have_results_themselves(world, actor):
    jobs = ["emit 3 emit", "drop", "emit 0 x", "emit 1 emit 2 y", "plain"]
    # The second stage finds "emit 1", "emit 2", "emit 3", then "emit 2 y", then "plain".
    expected = ["", " 1", " 2", " 1", " 2", " 3", "y 1", "y 2", "plain"] * 200
    outcome = world.run("--keep-order", "--workers", "1", actor, actor, input=lines(*jobs * 200))
    assert (outcome.code, outcome.lines()) == (0, expected), outcome
    assert b"1000 jobs done, 0 failed" in outcome.err

    # With several workers the results of one line may overtake each other, lines may not.
    outcome = world.run("--keep-order", "--workers", "2", actor, actor, input=lines(*jobs * 200))
    got = outcome.lines()
    assert outcome.code == 0 and len(got) == len(expected), outcome
    assert [sorted(got[i : i + 9]) for i in range(0, 1800, 9)] == [sorted(expected[:9])] * 200
    assert got[8::9] == ["plain"] * 200

    outcome = world.run("--workers", "2", actor, actor, input=lines(*jobs * 200))
    assert outcome.code == 0 and sorted(outcome.lines()) == sorted(expected), outcome
    assert b"1000 jobs done, 0 failed" in outcome.err


def test_more_results_than_any_frame_holds(world):
    results = [f"result {i}" for i in range(1, 30001)]
    outcome = world.run("--keep-order", "--workers", "1", "actor", "identity", input=lines("first", "emit 30000 result", "last"))
    assert (outcome.code, outcome.lines()) == (0, ["first", *results, "last"]), outcome
    outcome = world.run("--keep-order", "--workers", "2", "actor", "identity", input=lines("first", "emit 30000 result", "last"))
    got = outcome.lines()
    assert outcome.code == 0 and (got[0], got[-1]) == ("first", "last") and sorted(got[1:-1]) == sorted(results)


@pytest.mark.parametrize("actor", ["actor", "batch-actor"])
def test_failures_drops_and_retries_in_one_run(world, actor):
    jobs = ["a", "drop", "fail because", "drop-emitted", "retry-until 2", "retry again", "fail-silently", "b"]
    outcome = world.run("--keep-order", actor, "identity", input=lines(*jobs))
    assert (outcome.code, outcome.lines()) == (1, ["a", "attempt 2", "b"]), outcome
    complaints = sorted(outcome.complaints())
    assert complaints[0] == "line 3: because"
    assert complaints[1].startswith("line 6: again (attempt 3 of 3)")
    assert complaints[2].startswith("line 7: ")
    assert len(complaints) == 3
    assert b"5 jobs done, 3 failed" in outcome.err


def test_a_failed_result_fails_its_line(world):
    outcome = world.run("--keep-order", "actor", "actor", input=lines("emit 2 fail part", "b"))
    assert (outcome.code, outcome.out) == (1, b"b\n"), outcome
    assert sorted(outcome.complaints()) == ["line 1: part 1", "line 1: part 2"]


@pytest.mark.parametrize("actor", ["actor", "batch-actor"])
@pytest.mark.parametrize("death", ["segv", "abort", "exit 0", "exit 3", "_exit 0", "kill"])
def test_a_job_that_kills_its_workers_fails_and_all_others_succeed(world, actor, death):
    jobs = [f"job {n}" for n in range(300)]
    jobs[100] = jobs[200] = death
    outcome = world.run("--keep-order", "--workers", "2", actor, input=lines(*jobs))
    assert outcome.code == 1, outcome
    assert outcome.lines() == [j for j in jobs if j != death]
    failures = sorted(c for c in outcome.complaints() if c.startswith("line "))
    assert failures == [f"line {n}: its worker died 3 times while running it" for n in (101, 201)], outcome


@pytest.mark.parametrize("actor", ["actor", "batch-actor"])
def test_a_job_that_kills_two_workers_has_a_third_attempt(world, actor):
    outcome = world.run("--keep-order", actor, input=lines("a", "die-until 3", "b"))
    assert (outcome.code, outcome.lines()) == (0, ["a", "attempt 3", "b"]), outcome


def test_a_lone_job_that_kills_its_workers(world):
    outcome = world.run("--workers", "1", "actor", input=lines("kill"))
    assert (outcome.code, outcome.out) == (1, b""), outcome
    assert "line 1: its worker died 3 times while running it" in outcome.complaints()


# ---- ends ----


def test_head_closes_the_output_early(world):
    command = f"yes 7 | '{SLUICECTL}' run -q prime | head -3"
    outcome = world.call("bash", "-o", "pipefail", "-c", command)
    assert outcome.out == b"7 prime\n" * 3, outcome
    assert outcome.err == b"", outcome


def test_head_ends_a_source_without_end(world):
    outcome = world.call("bash", "-c", f"'{SLUICECTL}' run -q -k range:from=0,to=9000000000000000000 identity | head -2; exit ${{PIPESTATUS[0]}}")
    assert (outcome.code, outcome.out) == (0, b"0\n1\n"), outcome


def test_a_full_disk_is_an_error(world):
    with open("/dev/full", "wb") as full:
        outcome = world.start(SLUICECTL, "run", "range:from=1,to=100000", "identity", stdout=full).wait()
    assert outcome.code == 1, outcome
    assert b"cannot write results: No space left on device" in outcome.err


def test_closed_descriptors_are_errors_and_nothing_else_is_taken_for_them(world):
    outcome = world.call("bash", "-c", f"exec '{SLUICECTL}' run prime <&-")
    assert (outcome.code, outcome.out) == (1, b""), outcome
    assert b"cannot read input" in outcome.err
    outcome = world.call("bash", "-c", f"exec '{SLUICECTL}' run range:to=9 prime >&-")
    assert outcome.code == 1 and b"cannot write results" in outcome.err, outcome
    outcome = world.call("bash", "-c", f"exec '{SLUICECTL}' run range:to=9 prime 2>&-")
    assert (outcome.code, outcome.out.count(b"\n")) == (0, 10), outcome


def test_a_folder_as_input_is_an_error(world):
    outcome = world.call("bash", "-c", f"exec '{SLUICECTL}' run prime < /")
    assert (outcome.code, outcome.out) == (1, b""), outcome
    assert b"cannot read input" in outcome.err


def started(world, *arguments):
    """A run that has seen its first line."""
    job = world.start(SLUICECTL, "run", *arguments, stdin=subprocess.PIPE)
    job.write(b"sleep 1\n")
    wait_for(job.out, "the first result")
    return job


def test_one_interrupt_finishes_what_was_read(world):
    job = started(world, "--workers", "2", "actor")
    job.write(lines(*["sleep 20"] * 20))
    wait_for(lambda: job.out().count(b"\n") > 1, "the second result")
    job.signal(signal.SIGINT)
    outcome = job.wait()
    assert outcome.code == 130, outcome
    assert outcome.out.count(b"\n") == 21
    assert b"finishing what was read" in outcome.err and b"interrupted" in outcome.err


def test_one_interrupt_ends_a_source(world):
    job = world.start(SLUICECTL, "run", "range:from=1,to=9000000000000000000", "identity")
    wait_for(job.out, "results")
    job.signal(signal.SIGINT)
    outcome = job.wait()
    assert outcome.code == 130, outcome
    n = outcome.out.count(b"\n")
    assert n > 0 and sorted(numbers_in(outcome.out)) == list(range(1, n + 1))


def test_two_interrupts_end_it_now(world):
    job = started(world, "--workers", "2", "actor")
    job.write(b"hang\nhang\n")
    job.signal(signal.SIGINT)
    wait_for(lambda: b"finishing" in job.err(), "the first interrupt")
    job.signal(signal.SIGINT)
    assert job.wait().code == 130


def test_a_terminated_run_ends_now(world):
    job = started(world, "actor")
    job.write(b"hang\n")
    job.signal(signal.SIGTERM)
    assert job.wait().code == 130


def test_killed_it_takes_its_workers_with_it_and_leaves_no_queue(world):
    job = started(world, "--workers", "3", "actor", "identity")
    job.write(lines(*["hang"] * 5, *["x"] * 5))
    workers = workers_of(job.pid)
    assert len(workers) == 6
    queues_before = [fd for fd in fds(job.pid) if fd.startswith("/sluice")]
    assert len(queues_before) == 3, queues_before
    kill(job.pid)
    job.wait()
    wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")
    assert not any(queue_exists(q.split(" ")[0]) for q in queues_before)


def fds(pid):
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    return found


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["pirme"], 2, "prime"),
        ([], 2, "which stages"),
        (["--workers", "0", "prime"], 2, "--workers"),
        (["--workers", "x", "prime"], 2, "--workers"),
        (["--mode", "fiber", "prime"], 2, "process"),
        (["--nonsense"], 2, "nonsense"),
        (["range:to=3,form=1", "prime"], 2, "from"),
        (["range:to=x", "prime"], 2, "to"),
        (["-c", "/nonexistent.conf"], 78, "nonexistent"),
        (["-c", "/nonexistent.conf", "prime"], 2, "not both"),
        (["--progress", "loud", "prime"], 2, "progress"),
    ],
)
def test_wrong_usage_says_what_is_wrong(world, arguments, code, text):
    outcome = world.run(*arguments)
    assert (outcome.code, outcome.out) == (code, b""), outcome
    assert text in outcome.err.decode(), outcome


def test_a_bad_configuration_is_78_with_file_and_line(world):
    config = world.write("bad.conf", 'name = "x";\nstages = ( { use = "prime"; wrokers = 2; } );\n')
    outcome = world.run("-c", config)
    assert outcome.code == 78, outcome
    assert f"{config}:2:" in outcome.err.decode() and "workers" in outcome.err.decode()


@pytest.mark.parametrize("crash", ["true", "false"])
def test_a_stage_that_cannot_start_ends_the_run(world, crash):
    flag = world.write("flag", "")
    outcome = world.run("identity", f"gate:unless={flag},crash={crash}", input=lines("a", "b"), deadline=30)
    assert (outcome.code, outcome.out) == (1, b""), outcome
    assert b"cannot start" in outcome.err


def test_workers_killed_while_they_start_do_not_end_the_run(world):
    """Three times in a row is no stage that cannot start, if it could before."""
    job = started(world, "--workers", "1", "actor")
    for _ in range(4):
        (worker,) = wait_for(lambda: workers_of(job.pid), "a worker")
        kill(worker, signal.SIGSTOP)
        kill(worker)
        wait_for(lambda: not is_alive(worker), "its end")
    job.write(b"after\n")
    job.close_input()
    outcome = job.wait()
    assert outcome.code == 0 and outcome.lines()[-1] == "after", outcome


def test_help_goes_to_standard_output(world):
    outcome = world.run("--help")
    assert outcome.code == 0 and outcome.out.startswith(b"Usage: sluicectl run") and outcome.err == b""


# ---- progress ----


def test_progress_as_json_is_json(world):
    outcome = world.run("--progress", "json", "--workers", "2", "prime", input=seq(1, 200000))
    assert outcome.code == 0, outcome
    objects = [json.loads(line) for line in outcome.complaints()]
    assert objects and all(isinstance(o, dict) for o in objects)
    assert objects[-1]["done"] == 200000 and objects[-1]["failed"] == 0, objects[-1]


def test_without_a_terminal_there_is_no_bar(world):
    outcome = world.run("actor", input=lines(*["sleep 100"] * 10))
    assert b"\r" not in outcome.err and b"\033" not in outcome.err, outcome


def test_on_a_terminal_there_is_a_bar_and_it_goes_away(world):
    master, slave = os.openpty()
    with open(world.write("in", lines(*["sleep 150"] * 8)), "rb") as f:
        process = subprocess.Popen(
            [SLUICECTL, "run", "--workers", "1", "actor"], stdin=f, stdout=subprocess.DEVNULL, stderr=slave, env=world.env
        )
    os.close(slave)
    text = b""
    try:
        while True:
            text += os.read(master, 4096)
    except OSError:
        pass
    os.close(master)
    assert process.wait() == 0
    assert b"\r" in text and b"8 jobs done" in text
    assert text.rstrip().split(b"\033[K")[-1].lstrip(b"\r").startswith(b"sluicectl: 8 jobs done")


# ---- several, many, small ----


def test_four_runs_side_by_side(world):
    source = world.write("numbers", seq(1, 50000))
    jobs = []
    for _ in range(4):
        with open(source, "rb") as f:
            jobs.append(world.start(SLUICECTL, "run", "--workers", "2", "prime", stdin=f))
    for job in jobs:
        outcome = job.wait()
        assert (outcome.code, primes(outcome), outcome.out.count(b"\n")) == (0, 5133, 50000), outcome


def test_twenty_stages_fit_the_kernels_default_limits(world):
    outcome = world.run("--keep-order", "--workers", "1", *["identity"] * 20, input=seq(1, 20000))
    assert outcome.code == 0, outcome
    assert numbers_in(outcome.out) == list(range(1, 20001))


def test_runs_beyond_the_queue_budget_get_less_or_are_refused_but_never_hang(world):
    jobs = [world.start(SLUICECTL, "run", "--workers", "1", *["identity"] * 6, stdin=subprocess.PIPE) for _ in range(8)]
    for job in jobs:
        try:
            job.write(seq(1, 1000))
        except BrokenPipeError:
            pass
    # All of them at once: none may end before each has either answered or been refused.
    wait_for(lambda: all(j.out().count(b"\n") == 1000 or j.process.poll() is not None for j in jobs), "eight runs")
    n_done = 0
    for job in jobs:
        job.close_input()
        outcome = job.wait()
        if outcome.code == 0:
            assert sorted(numbers_in(outcome.out)) == list(range(1, 1001)), outcome
            n_done += 1
        else:
            assert outcome.code == 1 and b"RLIMIT_MSGQUEUE" in outcome.err, outcome
    assert n_done >= 2, [j.err() for j in jobs]


def test_without_any_room_for_queues_the_limit_is_named(world):
    tiny = lambda: resource.setrlimit(resource.RLIMIT_MSGQUEUE, (600, 600))
    outcome = world.start(SLUICECTL, "run", "identity", "identity", preexec=tiny).wait()
    assert (outcome.code, outcome.out) == (1, b""), outcome
    assert b"RLIMIT_MSGQUEUE" in outcome.err


def test_slow_jobs_of_one_frame_are_shared_among_all_workers(world):
    # One worker alone does at most 100 a second, four 400: half of that shows that they shared, on any machine. Also
    # when the input ends, so that the run comes to its end, before anybody could share: a matter of luck, so often.
    for _ in range(8):
        outcome = world.run("--workers", "4", "actor:sleep=10ms", input=lines(*["x"] * 60))
        assert outcome.code == 0 and outcome.out == b"x\n" * 60, outcome
        rate = re.search(r"([0-9.]+)/s", outcome.err.decode())
        assert float(rate.group(1)) > 150, outcome


def test_slow_jobs_of_a_source_that_has_ended_are_shared(world):
    for _ in range(8):
        outcome = world.run("--workers", "4", "range:from=1,to=60", "actor:sleep=10ms")
        assert outcome.code == 0 and sorted(numbers_in(outcome.out)) == list(range(1, 61)), outcome
        rate = re.search(r"([0-9.]+)/s", outcome.err.decode())
        assert float(rate.group(1)) > 150, outcome
