"""kill -9 at random moments: every number comes out exactly once.

The seed is printed; SLUICE_SEED=N repeats its choices (the moments stay the machine's).
SLUICE_TEST_NUMBERS is how many numbers pass.
"""

import os
import random
import signal
import time

import pytest
from harness import DEADLINE, SLUICECTL, check_each_once, kill, numbers_in, stage, wait_for, workers_of

COUNT = int(os.environ.get("SLUICE_TEST_NUMBERS", "5000000"))


@pytest.fixture
def chance():
    seed = int(os.environ.get("SLUICE_SEED") or time.time_ns() % 1000000)
    print(f"SLUICE_SEED={seed}")
    return random.Random(seed)


YOUNG = 0.3  # seconds: such a worker may still be starting


class Killer:
    """Kills workers of a supervisor, also while they start, but no lane over and over then: it would never start."""

    def __init__(self, chance):
        self.chance = chance
        self.n = 0
        self.seen = {}  # when a worker was
        self.streak = {}  # of a lane: kills of young workers in a row

    def strike(self, pid):
        now = time.monotonic()
        victims = []
        for worker, lane in workers_of(pid).items():
            if now - self.seen.setdefault(worker, now) > YOUNG:
                self.streak[lane] = 0
            if self.streak.get(lane, 0) < 3:
                victims.append((worker, lane))
        if not victims:
            return
        worker, lane = self.chance.choice(sorted(victims))
        if kill(worker):
            self.n += 1
            self.streak[lane] = self.streak.get(lane, 0) + 1

    def pause(self):
        time.sleep(self.chance.uniform(0, 0.02))


def prime_pipeline(world, count=COUNT, workers=2):
    return world.service(
        stage("range", {"from": 1, "to": count}, name="numbers"),
        stage("prime", workers=workers),
        stage("identity", workers=workers),
        stage("file", {"path": world.path("out")}, name="report"),
    )


def n_bytes(world):
    try:
        return os.stat(world.path("out")).st_size
    except FileNotFoundError:
        return 0


def wait_until_done(world, count=COUNT, meanwhile=lambda: time.sleep(0.005)):
    """Until the file has its size, or no longer grows: then what is missing is told by whoever checks it."""
    whole, most, since = expected_bytes(count), -1, time.monotonic()
    while n_bytes(world) < whole:
        meanwhile()
        if n_bytes(world) > most:
            most, since = n_bytes(world), time.monotonic()
        if time.monotonic() - since > DEADLINE / 2:
            return


def expected_primes(count):
    sieve = bytearray([1]) * (count + 1)
    sieve[0:2] = b"\0\0"
    for i in range(2, int(count**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, count + 1, i)))
    return sum(sieve)


def expected_bytes(count):
    """Of the lines "N prime", "N composite" and "1 neither"."""
    n_primes = expected_primes(count)
    digits = sum(count - 10**k + 1 for k in range(len(str(count))))
    return digits + n_primes * len(" prime\n") + (count - n_primes - 1) * len(" composite\n") + len(" neither\n")


def check_output(data):
    check_each_once(data, 1, COUNT)
    assert data.count(b" prime\n") == expected_primes(COUNT)


def test_workers_of_a_service_killed_at_random(world, chance):
    service = prime_pipeline(world).start()
    killer = Killer(chance)

    def strike():
        killer.strike(service.pid)
        killer.pause()

    wait_until_done(world, meanwhile=strike)
    service.stop(signal.SIGINT)
    print(f"{killer.n} kills")
    check_output(world.read("out"))
    assert killer.n > 0


def kill_until_it_ends(job, chance):
    killer = Killer(chance)
    while job.process.poll() is None:
        killer.strike(job.pid)
        killer.pause()
    print(f"{killer.n} kills")
    return killer, job.wait()


def test_workers_of_a_run_killed_at_random(world, chance):
    job = world.start(SLUICECTL, "run", "--workers", "2", f"range:from=1,to={COUNT}", "prime", "identity")
    killer, outcome = kill_until_it_ends(job, chance)
    assert outcome.code == 0, outcome
    check_output(outcome.out)
    assert killer.n > 0


def test_workers_of_a_run_with_lines_killed_at_random(world, chance):
    count = COUNT // 2
    path = world.write("in", "".join(f"{n}\n" for n in range(1, count + 1)))
    with open(path, "rb") as f:
        job = world.start(SLUICECTL, "run", "--keep-order", "--workers", "2", "identity", "prime", stdin=f)
    killer, outcome = kill_until_it_ends(job, chance)
    assert outcome.code == 0, outcome
    assert numbers_in(outcome.out) == list(range(1, count + 1))


def test_the_supervisor_killed_again_and_again(world, chance):
    service = prime_pipeline(world)
    for _ in range(6):
        service.start()
        aim = min(expected_bytes(COUNT), n_bytes(world) + int(COUNT * chance.uniform(0, 2)))
        wait_for(lambda: n_bytes(world) >= aim, "some more lines")
        service.kill()
    service.start()
    wait_until_done(world)
    service.stop(signal.SIGINT)
    check_output(world.read("out"))


def test_supervisor_and_workers_killed_while_it_starts(world, chance):
    """Kills long before and right after it is ready, where resume is at work."""
    count = COUNT // 10
    service = prime_pipeline(world, count)
    for _ in range(8):
        service.start(ready=False)
        time.sleep(chance.uniform(0, 0.06))
        for worker in list(service.workers())[: chance.randrange(3)]:
            kill(worker)
        service.kill()
    service.start()
    wait_until_done(world, count)
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 1, count)


def test_jobs_of_clients_survive_kills_of_everything(world, chance):
    """Not from a source, so every job is in a queue or a record, or it is lost."""
    count = COUNT // 5
    service = world.service(
        stage("identity", workers=2), stage("prime", workers=3), stage("file", {"path": world.path("out")})
    )
    service.start()
    path = world.write("in", "".join(f"{n}\n" for n in range(1, count + 1)))
    submitter = world.start(SLUICECTL, "submit", "-i", service.name, "-f", path, env=service.env)
    killer = Killer(chance)
    n_restarts = 0
    while submitter.process.poll() is None:
        killer.strike(service.pid)
        killer.pause()
        if n_restarts < 4 and n_bytes(world) > count * (n_restarts + 1) * 2:
            service.kill()
            service.start()
            n_restarts += 1
    assert submitter.wait().code == 0, submitter.err()
    wait_until_done(world, count)
    service.stop(signal.SIGINT)
    print(f"{killer.n} kills of workers, {n_restarts} of the supervisor")
    check_each_once(world.read("out"), 1, count)
