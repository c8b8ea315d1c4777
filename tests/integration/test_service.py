"""sluiced: a pipeline as a service."""

import os
import random
import re
import signal
import struct
import threading
import time

import pytest
from harness import (
    DEADLINE,
    SLUICECTL,
    SLUICED,
    Queue,
    check_each_once,
    children_of,
    is_alive,
    kill,
    numbers_in,
    process_status,
    process_title,
    queue_exists,
    queue_unlink,
    stage,
    wait_for,
)


def file_sink(world, file="out", **keys):
    return stage("file", {"path": world.path(file)}, **keys)


def traced(world, **keys):
    """An actor that tells what it runs."""
    return stage("actor", {"trace": world.path("trace")}, workers=1, **keys)


def wait_running(world, job, n=1):
    """Until the job's handler has been called n times."""
    wait_for(lambda: world.read("trace").split(b"\n").count(job.encode()) >= n, f"run {n} of {job!r}")


def count_lines(world, name="out"):
    return world.read(name).count(b"\n")


def wait_lines(world, n, name="out"):
    wait_for(lambda: count_lines(world, name) >= n, f"{n} lines in {name}")


def echo(world, **top):
    """Clients -> identity -> file."""
    return world.service(stage("identity", workers=2), file_sink(world), **top)


# ---- starting ----


def test_it_says_when_it_is_ready_and_its_processes_have_names(world):
    service = world.service(stage("range", {"to": 9}, name="numbers"), stage("prime", workers=3), file_sink(world, name="report"))
    service.start()
    assert re.search(r"^STATUS=.*3 stages.*5 workers", service.notified, re.M), service.notified
    assert process_title(service.pid) == f"sluiced: {service.name}"
    titles = set(service.workers().values())
    # A source that has ended has no worker; this one may still be there.
    assert {"prime/0", "prime/1", "prime/2", "report/0"} <= titles <= {"numbers/0", "prime/0", "prime/1", "prime/2", "report/0"}
    wait_lines(world, 10)
    service.stop()


def test_it_announces_that_it_stops(world):
    service = echo(world).start()
    notify = service.notify
    service.job.signal(signal.SIGTERM)
    assert service.job.wait().code == 0
    assert b"STOPPING=1" in notify.recv(4096)
    notify.close()


def test_a_second_start_is_refused(world):
    service = echo(world).start()
    outcome = world.call(SLUICED, "-c", service.config, env=service.env)
    assert outcome.code == 3, outcome
    assert f"{service.name} is running already (pid {service.pid}".encode() in outcome.err
    assert service.submit("x").code == 0
    wait_lines(world, 1)
    service.stop()


def test_two_services_side_by_side(world):
    a = world.service(stage("identity", workers=1), file_sink(world, "a")).start()
    b = world.service(stage("identity", workers=1), file_sink(world, "b")).start()
    assert a.submit("for a").code == 0 and b.submit("for b").code == 0
    wait_lines(world, 1, "a")
    wait_lines(world, 1, "b")
    assert (world.read("a"), world.read("b")) == (b"for a\n", b"for b\n")
    a.stop()
    b.stop()


def test_a_bad_configuration_is_78(world):
    config = world.write("bad.conf", 'name = "bad";\nstages = ( { use = "nothing-like-it"; } );\n')
    outcome = world.call(SLUICED, "-c", config)
    assert outcome.code == 78 and f"{config}:2:".encode() in outcome.err, outcome


def test_a_queue_that_is_another_users_is_not_used(world):
    if os.getuid() != 0:
        pytest.skip("only root can make another user's queue")
    service = echo(world)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            Queue(service.queue_name("in"), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o666).close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert queue_exists(service.queue_name("in"))
    service.start(ready=False)
    outcome = service.job.wait()
    service.notify.close()
    queue_unlink(service.queue_name("in"))
    assert outcome.code == 1 and b"belongs to another user" in outcome.err, outcome


# ---- submitting ----


def test_submitted_jobs_come_out_exactly(world):
    service = world.service(stage("identity", workers=1), file_sink(world)).start()
    text = b"".join(b"line %d\n" % n for n in range(20000))
    assert service.submit(input=text).code == 0
    assert service.submit("one", "two words", "").code == 0
    path = world.write("jobs", b"from\0a\nfile\0")
    assert service.submit("--null", "--file", path).code == 0
    service.stop(signal.SIGINT)
    assert world.read("out") == text + b"one\ntwo words\n\n" + b"from\n" + b"a\nfile\n"


def test_many_clients_at_once(world):
    service = echo(world).start()
    clients = []
    for k in range(6):
        path = world.write(f"in.{k}", "".join(f"{n}\n" for n in range(k * 20000, (k + 1) * 20000)))
        clients.append(world.start(SLUICECTL, "submit", "-i", service.name, "-f", path, env=service.env))
    for client in clients:
        assert client.wait().code == 0, client.err()
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 0, 119999)


def test_submitting_to_nobody(world):
    outcome = world.call(SLUICECTL, "submit", "-i", "no-such-instance", "x")
    assert outcome.code == 3 and b"no-such-instance" in outcome.err, outcome
    service = echo(world).start()
    service.stop()
    with_queue = service.submit("waits for the next start")
    assert with_queue.code in (0, 3), with_queue


def test_a_full_queue_holds_clients_up_or_tells_them(world):
    service = world.service(traced(world, queue={"depth": 2, "message": "256B"}), file_sink(world)).start()
    assert service.submit("hang").code == 0
    text = b"x" * 100 + b"\n"
    outcome = service.submit("--no-wait", input=text * 100)
    assert outcome.code == 4, outcome
    waiting = world.start(SLUICECTL, "submit", "-i", service.name, "-q", *["y"] * 100, env=service.env)
    with Queue(service.queue_name("in")) as queue:
        assert queue.depth() == 2
    assert waiting.process.poll() is None
    # The third death of its worker fails the job; then all others pass.
    for n in range(3):
        wait_running(world, "hang", n + 1)
        (worker,) = service.workers("actor")
        kill(worker)
        wait_for(lambda: not is_alive(worker), "its end")
    assert waiting.wait().code == 0
    service.wait_log("its worker died 3 times")
    service.stop(signal.SIGINT)
    assert world.read("out").count(b"y\n") == 100


def test_raw_messages_of_any_program_are_jobs(world):
    service = world.service(stage("identity", workers=1), file_sink(world)).start()
    with Queue(service.queue_name("in")) as queue:
        queue.send(b"no NUL at the end")
        queue.send(b"one at the end\0")
        queue.send(b"one in\0the middle")
        queue.send(b"")
        # As large as a message can be it has no room for a frame around it: that one fails, and says so.
        queue.send(b"z" * queue.message_bytes())
        queue.send(b"last")
    wait_lines(world, 5)
    service.wait_log(r"Job \d+ failed: ")
    service.stop()
    assert world.read("out") == b"no NUL at the end\none at the end\none in\n\nlast\n"


def header(kind=1, version=1, length=None, count=1, sequence=1, producer=0, ticket=0xFFFFFFFF, key=0, generation=0, body=b""):
    """A frame as the frame format has it, with whatever a client may forge."""
    length = 72 + len(body) if length is None else length
    head = struct.pack("<IBBHIIQQQIIQQ", 0x434C5389, version, kind, 16, length, count, 7, 0, sequence, producer, ticket, key, generation)
    return head + body + struct.pack("<Q", sequence)


def forgeries():
    job = struct.pack("<I", 3) + b"abc"
    yield b"\x89SLC"
    yield b"\x89SLC" + b"\xff" * 60
    yield b"\x89SLC" + bytes(100)
    yield header(version=9, body=job)
    yield header(kind=3, body=job)
    yield header(kind=2, count=0)  # a sentinel
    yield header(kind=2, count=0, generation=1, key=1)
    yield header(count=1000, body=job)
    yield header(length=8000, body=job)
    yield header(length=10, body=job)
    yield header(body=struct.pack("<I", 0xFFFFF) + b"abc")
    yield header(body=struct.pack("<I", 3 | 4 << 28) + b"abc")  # a marker
    yield header(body=struct.pack("<I", 3 | 8 << 28) + b"abc")  # a reference
    yield header(body=job)[:-8] + bytes(8)  # without its trailer
    dice = random.Random(1)
    for _ in range(200):
        yield b"\x89SLC" + dice.randbytes(dice.randrange(200))
    for _ in range(200):
        frame = bytearray(header(body=job))
        for _ in range(dice.randrange(1, 4)):
            frame[dice.randrange(4, 64)] = dice.randrange(256)
        yield bytes(frame)


def test_garbage_is_refused_and_logged_and_the_pipeline_lives(world):
    service = echo(world).start()
    workers = service.workers()
    n = 0
    with Queue(service.queue_name("in")) as queue:
        for message in forgeries():
            queue.send(message)
            n += 1
            if n % 10 == 0:
                queue.send(b"%d" % (n // 10))
    n_good = n // 10
    wait_for(lambda: len(good_numbers(world)) >= n_good, "the jobs between the garbage")
    service.wait_log(r"Refused \d+ messages? that (is|are) neither")
    assert service.workers() == workers, "no worker died"
    assert service.log().count("Refused") < 30, "rate limited"
    service.stop(signal.SIGINT)
    assert sorted(good_numbers(world)) == list(range(1, n_good + 1))


def good_numbers(world):
    return [int(l) for l in world.read("out").split(b"\n") if l.isdigit()]


def test_jobs_that_a_client_frames_itself_are_jobs(world):
    service = world.service(stage("identity", workers=1), file_sink(world)).start()
    body = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0) + struct.pack("<I", 2) + b"de"
    with Queue(service.queue_name("in")) as queue:
        # Also with a ticket and a sequence, which are not believed: a copy is simply another frame.
        for _ in range(2):
            queue.send(header(count=3, ticket=0, body=body))
    wait_lines(world, 6)
    service.stop()
    assert world.read("out") == b"abc\n\nde\n" * 2


# ---- stopping ----


def test_sigterm_parks_and_the_next_start_goes_on(world):
    service = world.service(
        stage("identity", workers=1), stage("actor", {"sleep": "2ms"}, workers=2), file_sink(world)
    ).start()
    count = 600
    assert service.submit(input="".join(f"{n}\n" for n in range(count)).encode()).code == 0
    n_stops = 0
    while count_lines(world) < count:
        aim = count_lines(world) + 100
        wait_for(lambda: count_lines(world) >= min(aim, count), "some lines")
        assert b"Parked" in service.stop().err
        n_stops += 1
        service.start()
    service.stop(signal.SIGINT)
    assert n_stops >= 3
    check_each_once(world.read("out"), 0, count - 1)


def test_parking_waits_for_the_job_at_hand(world):
    service = world.service(traced(world), file_sink(world)).start()
    assert service.submit("sleep 300", "sleep 301").code == 0
    wait_running(world, "sleep 300")
    service.stop()
    assert "died" not in service.log()
    service.start()
    wait_lines(world, 2)
    service.stop()
    assert world.read("out") == b"sleep 300\nsleep 301\n"


@pytest.mark.parametrize("how", ["interrupt", "on_stop"])
def test_draining_finishes_everything(world, how):
    top = {"on_stop": "drain"} if how == "on_stop" else {}
    service = world.service(
        stage("identity", workers=2),
        stage("actor", {"sleep": "1ms"}, workers=3),
        stage("identity", workers=2, name="third"),
        file_sink(world),
        **top,
    ).start()
    assert service.submit(input="".join(f"{n}\n" for n in range(500)).encode()).code == 0
    outcome = service.stop(signal.SIGTERM if how == "on_stop" else signal.SIGINT)
    assert b"Drained" in outcome.err
    check_each_once(world.read("out"), 0, 499)


def test_a_second_interrupt_parks_and_a_third_kills(world):
    service = world.service(traced(world), file_sink(world)).start()
    assert service.submit("hang", "b").code == 0
    wait_running(world, "hang")
    for text in ("Draining", "Parking"):
        service.job.signal(signal.SIGINT)
        service.wait_log(text)
    assert service.job.process.poll() is None
    service.job.signal(signal.SIGINT)
    assert service.job.wait().code == 0
    service.notify.close()


def test_a_drain_with_a_stuck_stage_is_ended_by_parking(world):
    flag = world.write("flag", "")
    service = world.service(stage("identity", workers=1), stage("gate", {"unless": flag}, workers=1), file_sink(world))
    service.start()
    assert service.submit("a", "b").code == 0
    service.job.signal(signal.SIGINT)
    service.wait_log("Draining")
    service.job.signal(signal.SIGINT)
    assert service.job.wait().code == 0
    service.notify.close()
    os.unlink(flag)
    service.start()
    wait_lines(world, 2)
    service.stop()
    assert sorted(world.read("out").split()) == [b"a", b"b"]


def test_what_was_running_when_the_daemon_died_is_no_failed_attempt(world):
    service = world.service(traced(world), file_sink(world)).start()
    assert service.submit("long 400").code == 0
    for n in range(3):
        wait_running(world, "long 400", n + 1)
        service.kill()
        service.start()
    wait_lines(world, 1)
    service.stop()
    assert world.read("out") == b"attempt 1\n"


def test_a_job_interrupted_ten_times_is_given_up(world):
    service = world.service(traced(world), file_sink(world)).start()
    assert service.submit("hang", "after").code == 0
    for n in range(10):
        wait_running(world, "hang", n + 1)
        assert count_lines(world) == 0
        service.kill()
        service.start()
    service.wait_log("interrupted 10 times")
    wait_lines(world, 1)
    service.stop()
    assert world.read("out") == b"after\n"


def test_a_source_goes_on_where_it_was_and_stays_ended(world):
    count = 300000
    service = world.service(stage("range", {"from": 1, "to": count}, name="numbers"), stage("identity", workers=2), file_sink(world))
    service.start()
    for _ in range(3):
        wait_for(lambda: count_lines(world) > 0, "lines")
        service.stop()
        service.start()
    wait_lines(world, count)
    service.stop()
    service.start()
    assert "numbers/0" not in service.workers().values()
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 1, count)


# ---- operating ----


def test_hangup_reopens_files(world):
    service = world.service(stage("identity", workers=1), file_sink(world)).start()
    assert service.submit("before").code == 0
    wait_lines(world, 1)
    os.rename(world.path("out"), world.path("out.1"))
    assert service.submit("into the old file").code == 0
    wait_lines(world, 2, "out.1")
    service.job.signal(signal.SIGHUP)
    wait_for(lambda: os.path.exists(world.path("out")), "the new file")
    assert service.submit("into the new one").code == 0
    wait_lines(world, 1)
    service.stop()
    assert world.read("out.1") == b"before\ninto the old file\n"
    assert world.read("out") == b"into the new one\n"


@pytest.mark.parametrize("crash", [True, False])
def test_a_stage_that_does_not_come_up_hurts_no_other_and_recovers(world, crash):
    flag = world.write("flag", "")
    service = world.service(
        stage("identity", workers=1), stage("gate", {"unless": flag, "crash": crash}, workers=2), file_sink(world)
    ).start()
    others = {w for w, lane in service.workers().items() if not lane.startswith("gate")}
    assert len(others) == 2
    assert service.submit("a", "b").code == 0
    service.wait_log("The stage is degraded")
    assert all(map(is_alive, others))
    assert count_lines(world) == 0
    os.unlink(flag)
    service.wait_log("The stage has recovered")
    wait_lines(world, 2)
    assert others <= set(service.workers())
    service.stop()


def test_killed_workers_are_replaced_at_once_if_they_had_done_something(world):
    service = echo(world).start()
    for n in range(20):
        for worker in service.workers():
            kill(worker)
        assert service.submit(str(n)).code == 0
        wait_lines(world, n + 1)
    service.stop()
    check_each_once(world.read("out"), 0, 19)


def test_fewer_workers_after_a_crash_lose_nothing(world):
    """Lanes that are no longer wanted hold jobs: they finish them and go."""
    slow, sink = stage("actor", {"sleep": "1ms"}, workers=6), file_sink(world)
    service = world.service(stage("identity", workers=4), slow, sink).start()
    assert service.submit(input="".join(f"{n}\n" for n in range(2000)).encode()).code == 0
    wait_lines(world, 100)
    service.kill()
    service.configure(stage("identity", workers=1), {**slow, "workers": 2}, sink)
    service.start()
    wait_lines(world, 400)
    service.kill()
    service.start()
    wait_lines(world, 2000)
    wait_for(lambda: sorted(service.workers("actor").values()) == ["actor/0", "actor/1"], "the others to be gone")
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 0, 1999)


def test_more_workers_on_the_next_start(world):
    service = world.service(stage("actor", {"sleep": "1ms"}, workers=1), file_sink(world)).start()
    assert service.submit(input="".join(f"{n}\n" for n in range(500)).encode()).code == 0
    wait_lines(world, 50)
    service.stop()
    service.configure(stage("actor", {"sleep": "1ms"}, workers=5), file_sink(world))
    service.start()
    assert len(service.workers("actor")) == 5
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 0, 499)


def test_a_stage_that_is_gone_but_holds_jobs_stops_the_start(world):
    middle = stage("actor", {"sleep": "20ms"}, workers=1)
    service = world.service(stage("identity", workers=1), middle, file_sink(world)).start()
    assert service.submit(*map(str, range(50))).code == 0
    wait_lines(world, 2)
    service.kill()
    service.configure(stage("identity", workers=1), file_sink(world))
    service.start(ready=False)
    outcome = service.job.wait()
    service.notify.close()
    assert outcome.code == 1 and b"earlier configuration" in outcome.err, outcome
    service.configure(stage("identity", workers=1), middle, file_sink(world))
    service.start()
    service.stop(signal.SIGINT)
    check_each_once(world.read("out"), 0, 49)


def test_purge_removes_what_a_stopped_service_left(world):
    service = world.service(traced(world), file_sink(world)).start()
    running = service.ctl("purge")
    assert running.code == 3, running
    assert service.submit("hang", "a", "b").code == 0
    wait_running(world, "hang")
    service.kill()
    held = service.ctl("purge")
    assert held.code == 1 and held.err, held
    assert all(map(queue_exists, [service.queue_name("in"), service.queue_name("file")]))
    forced = service.ctl("purge", "--force")
    assert forced.code == 0, forced
    assert not any(map(queue_exists, service.queues))
    service.start()
    assert service.submit("c").code == 0
    wait_lines(world, 1)
    service.stop()
    assert world.read("out") == b"c\n"


def context_switches(pids):
    """Of every thread."""
    total = {}
    for pid in pids:
        for tid in os.listdir(f"/proc/{pid}/task"):
            status = process_status(tid)
            total[tid] = (status["voluntary_ctxt_switches"], process_title(pid))
    return total


def test_an_idle_service_wakes_nobody(world):
    service = world.service(stage("identity", workers=4), stage("prime", workers=4), file_sink(world)).start()
    assert service.submit(*map(str, range(100))).code == 0
    wait_lines(world, 100)
    pids = [service.pid, *service.workers()]
    assert len(pids) == 10

    # Whatever the last job set going has to end first; then nothing may happen for two seconds.
    end = time.monotonic() + DEADLINE
    while True:
        before = context_switches(pids)
        time.sleep(2)
        after = context_switches(pids)
        if before == after:
            break
        assert time.monotonic() < end, {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    service.stop()


def test_the_end_of_the_daemon_is_the_end_of_its_workers(world):
    service = echo(world).start()
    workers = service.workers()
    assert len(workers) == 3
    service.kill()
    assert not any(map(is_alive, workers))
    assert not children_of(service.pid)


def test_results_can_go_to_a_queue(world):
    service = world.service(stage("prime", workers=1), results="queue").start()
    assert service.submit("7").code == 0
    with Queue(service.queue_name("results"), os.O_RDONLY) as queue:
        wait_for(lambda: queue.depth() == 1, "a frame of results")
    service.stop()


def test_without_results_the_last_stages_are_dropped(world):
    service = world.service(stage("prime", workers=1)).start()
    assert b"are dropped" in service.job.err()
    assert service.submit(*map(str, range(1000))).code == 0
    service.stop(signal.SIGINT)
    assert not queue_exists(service.queue_name("results"))


def test_failed_jobs_are_logged(world):
    service = world.service(stage("prime", workers=1), file_sink(world)).start()
    assert service.submit("2", "two", "3").code == 0
    wait_lines(world, 2)
    service.wait_log(r"Job \d+ failed: ")
    service.stop()
    assert world.read("out") == b"2 prime\n3 prime\n"


def test_clients_may_submit_while_it_drains(world):
    """The ingress queue is drained by word and signal; nothing of what was submitted may be lost for it."""
    service = echo(world, drain_grace="1s").start()
    done = threading.Event()
    sent = []

    def client():
        # Never blocking: once the service is gone nobody would wake it.
        with Queue(service.queue_name("in"), os.O_WRONLY | os.O_NONBLOCK) as queue:
            while not done.is_set():
                try:
                    queue.send(b"%d" % len(sent))
                    sent.append(None)
                except BlockingIOError:
                    pass
                time.sleep(0.0002)

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    try:
        wait_lines(world, 50)
        service.stop(signal.SIGINT)
    finally:
        done.set()
    service.start()  # the client may be blocked on a full queue
    thread.join()
    wait_lines(world, len(sent))
    service.stop(signal.SIGINT)
    assert sorted(numbers_in(world.read("out"))) == list(range(len(sent)))
