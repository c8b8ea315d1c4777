"""A worker dies right after any step of the lane protocol: every result is there exactly once.

The workers are of a build that can kill itself (SLUICE_CRASH=STEP:K, see lane.h); the steps
are read from the table that the code is built from, so a new one is tested without being named here.
"""

import os
import re
import signal
import subprocess

import pytest
from harness import BUILD, SLUICECTL, SOURCE, Queue, check_each_once, process_status, stage, wait_for, workers_of

with open(os.path.join(SOURCE, "daemon", "lane", "lane.h")) as _f:
    STEPS = re.findall(r'^\s*X\([A-Z_]+, "([a-z]+\.[a-z]+)",', _f.read(), re.M)

# Taken by every pipeline; the others need their own conditions.
PLAIN = [s for s in STEPS if not s.startswith(("share.", "refill."))]
ONCE_A_LIFE = ("finish.flip",)


def test_the_table_of_steps_is_found():
    assert len(STEPS) >= 20 and "commit.flip" in STEPS, STEPS


def crashing(world, step, k, once=True):
    """Environment in which a worker dies at its k-th pass of the step; only one of them, or all over again."""
    libexec = world.path("libexec")
    os.makedirs(libexec, exist_ok=True)
    if not os.path.lexists(os.path.join(libexec, "sluice-worker")):
        os.symlink(os.path.join(BUILD, "tests", "integration", "crash-worker"), os.path.join(libexec, "sluice-worker"))
    env = {"SLUICE_LIBEXEC": libexec, "SLUICE_CRASH": f"{step}:{k}"}
    if once:
        env["SLUICE_CRASH_ONCE"] = world.path("crashed")
    return env


def check_crashed(world, log):
    assert os.path.exists(world.path("crashed")), "no worker came to this step"
    assert log.count(b"died of SIGKILL") == 1, log.decode()


def times(step):
    return [1] if step in ONCE_A_LIFE else [1, 2, 5]


@pytest.mark.parametrize("step, k", [(s, k) for s in PLAIN for k in times(s)])
def test_a_run_of_a_source(world, step, k):
    outcome = world.run("--workers", "2", "range:from=1,to=20000", "identity", "prime", env=crashing(world, step, k))
    assert outcome.code == 0, outcome
    check_crashed(world, outcome.err)
    check_each_once(outcome.out, 1, 20000)


@pytest.mark.parametrize("step", [s for s in PLAIN if s not in (*ONCE_A_LIFE, "produce.flip")])
def test_a_run_of_lines_in_order(world, step):
    """Twenty-seven results of every third line, none of the next, through two stages."""
    kinds = ["emit 3 emit 9 x", "drop", "plain"]
    outcome = world.run(
        *("--keep-order", "--workers", "1", "actor", "batch-actor"),
        input="".join(f"{k}\n" for k in kinds * 60).encode(),
        env=crashing(world, step, 3),
    )
    assert outcome.code == 0, outcome
    check_crashed(world, outcome.err)
    # The first stage makes "emit 9 x 1", "emit 9 x 2", "emit 9 x 3".
    one = [f"x {i} {j}" for i in range(1, 4) for j in range(1, 10)] + ["plain"]
    assert outcome.lines() == one * 60


@pytest.mark.parametrize("step", [s for s in PLAIN if s not in (*ONCE_A_LIFE, "receive.arm")])
def test_every_worker_dies_again_and_again(world, step):
    """Each gets a little further than the one before it."""
    k, count = (40, 400) if step in ("run.flip", "run.handler", "commit.flip") else (3, 20000)
    outcome = world.run(
        *("--workers", "2", f"range:from=1,to={count}", "identity", "prime"), env=crashing(world, step, k, once=False)
    )
    assert outcome.code == 0, outcome
    assert outcome.err.count(b"died of SIGKILL") > 1, outcome
    check_each_once(outcome.out, 1, count)


@pytest.mark.parametrize("step, k", [(s, k) for s in PLAIN if s != "produce.flip" for k in times(s)[:2]])
def test_a_service_with_clients(world, step, k):
    """Its first queue takes what clients send, framed and raw; its last stage commits a file's position."""
    service = world.service(
        stage("identity", workers=1), stage("prime", workers=1), stage("file", {"path": world.path("out")})
    )
    service.start(env=crashing(world, step, k))
    with Queue(service.queue_name("in")) as queue:
        for n in range(20):
            queue.send(b"%d" % n)
    assert service.submit(input="".join(f"{n}\n" for n in range(20, 5000)).encode()).code == 0
    outcome = service.stop(signal.SIGINT)
    check_crashed(world, outcome.err)
    check_each_once(world.read("out"), 0, 4999)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_results_that_outgrow_a_frame(world, k):
    outcome = world.run(
        *("--keep-order", "--workers", "1", "actor", "identity"),
        input=b"first\nemit 8000 result\nemit 2 result\nlast\n",
        env=crashing(world, "refill.flip", k),
    )
    assert outcome.code == 0, outcome
    check_crashed(world, outcome.err)
    assert outcome.lines() == ["first", *(f"result {i}" for i in range(1, 8001)), "result 1", "result 2", "last"]


@pytest.mark.parametrize("k", [1])  # how often a lane shares is a matter of luck; once it does
@pytest.mark.parametrize("step", ["share.flip", "share.open", "share.call", "share.sent"])
def test_sharing_with_idle_lanes(world, step, k):
    jobs = "".join(f"{n}\n" for n in range(200)).encode()
    for _ in range(20):
        outcome = world.run("--workers", "4", "actor:sleep=2ms", input=jobs, env=crashing(world, step, k))
        assert outcome.code == 0, outcome
        check_each_once(outcome.out, 0, 199)
        # Who shares how often with whom is up to the scheduler.
        if os.path.exists(world.path("crashed")):
            break
    check_crashed(world, outcome.err)


def start_with_a_stopped_lane(world, env):
    """Two lanes on a queue of one frame; one of them seems idle but is stopped. Returns the run, and its pid."""
    config = world.write(
        "p.conf",
        'stages = ( { use = "actor"; workers = 2; queue = { depth = 1; message = "512B"; }; settings = { sleep = "1ms"; }; } );',
    )
    job = world.start(SLUICECTL, "run", "-c", config, stdin=subprocess.PIPE, env=env)
    workers = wait_for(lambda: len(workers_of(job.pid)) == 2 and sorted(workers_of(job.pid)), "two workers")
    job.write(b"0\n")
    wait_for(lambda: job.out() == b"0\n", "the first result")
    wait_for(lambda: all(map(is_blocked_in_receive, workers)), "both to be idle")
    os.kill(workers[1], signal.SIGSTOP)
    # Until it has really stopped the kernel may hand it the frame that the other is to share.
    wait_for(lambda: process_status(workers[1]).get("State", "")[:1] == "T", "the lane to stop")
    return job, workers[1]


def finish_with_the_stopped_lane(world, job, stopped, count):
    job.close_input()
    wait_for(lambda: os.path.exists(world.path("crashed")), "a worker to come to the step")
    # Its successor has to settle what it left before the other lane can take part.
    wait_for(lambda: job.out().count(b"\n") > 5, "some results")
    os.kill(stopped, signal.SIGCONT)
    outcome = job.wait()
    assert outcome.code == 0, outcome
    check_crashed(world, outcome.err)
    check_each_once(outcome.out, 0, count - 1)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("step", ["share.flip", "share.open", "share.revoke", "share.back"])
def test_sharing_into_a_full_queue(world, step, k):
    """The client fills the queue, so no share finds room."""
    job, stopped = start_with_a_stopped_lane(world, crashing(world, step, k))
    job.write("".join(f"{n}\n" for n in range(1, 400)).encode())
    finish_with_the_stopped_lane(world, job, stopped, 400)


def test_what_was_shared_before_a_crash_but_nobody_took(world):
    """The copy fills the queue. There is no room for another, so the jobs are taken back, and the copy is void."""
    job, stopped = start_with_a_stopped_lane(world, crashing(world, "share.call", 1))
    job.write("".join(f"{n}\n" for n in range(1, 60)).encode())
    finish_with_the_stopped_lane(world, job, stopped, 60)


def is_blocked_in_receive(pid):
    """The system call it is in, by number; mq_timedreceive's is the same on all machines but for x86."""
    with open(f"/proc/{pid}/syscall") as f:
        number = f.read().split()[0]
    return number == {"x86_64": "243", "i686": "280"}.get(os.uname().machine, "183")
