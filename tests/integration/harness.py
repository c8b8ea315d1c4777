"""Runs the real programs, every test in a world of its own.

A world is a folder on tmpfs, an environment and the processes started in it. When the
test is over nothing of it may be left: no process, no queue, no file. Conditions are
waited for, with a deadline that only a broken program reaches.

SLUICE_BUILD is the build folder; SLUICE_TEST_PATIENCE (1) multiplies the deadlines.
"""

import ctypes
import errno
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ["SLUICE_BUILD"]
SLUICED = os.path.join(BUILD, "daemon", "sluiced")
SLUICECTL = os.path.join(BUILD, "daemon", "sluicectl")
BUILTIN_STAGES = os.path.join(BUILD, "stages")
TEST_STAGES = os.path.join(BUILD, "tests", "integration")
DEADLINE = 60 * float(os.environ.get("SLUICE_TEST_PATIENCE", "1"))

_numbers = itertools.count(1)


def wait_for(condition, what, deadline=DEADLINE):
    """The condition's value, as soon as it is true."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.003)


# ---- processes ----


def _read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def process_status(pid):
    """/proc/PID/status as a dictionary; empty if there is no such process."""
    lines = _read(f"/proc/{pid}/status").decode(errors="replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_alive(pid):
    return process_status(pid).get("State", "Z")[0] not in "ZX"


def process_title(pid):
    return _read(f"/proc/{pid}/cmdline").split(b"\0")[0].decode()


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_of(pid):
    """Living children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [p for p in map(int, f.read().split()) if is_alive(p)]
    except OSError:
        pass  # the process is gone, or a kernel without it
    return [p for p in all_pids() if process_status(p).get("PPid") == str(pid) and is_alive(p)]


def workers_of(pid, stage=None):
    """The workers of a supervisor: {pid: "STAGE/LANE"}."""
    prefix = "sluice-worker: "
    found = {}
    for child in children_of(pid):
        title = process_title(child)
        if title.startswith(prefix) and (stage is None or title[len(prefix) :].split("/")[0] == stage):
            found[child] = title[len(prefix) :]
    return found


def kill(pid, sig=signal.SIGKILL):
    """False if it is gone already."""
    try:
        os.kill(pid, sig)
        return True
    except ProcessLookupError:
        return False


# ---- queues, by the kernel's own calls: the tests do not trust what they test ----

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("mq_open", "mq_send", "mq_unlink", "mq_getattr"):
    if not hasattr(_libc, _name):
        _libc = ctypes.CDLL("librt.so.1", use_errno=True)
        break


class _Attributes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("flags", "maxmsg", "msgsize", "curmsgs", "_0", "_1", "_2", "_3")]


class Queue:
    """A named message queue; `flags` with O_CREAT makes it, in the kernel's default shape."""

    def __init__(self, name, flags=os.O_WRONLY, mode=0o600):
        self.fd = _libc.mq_open(name.encode(), ctypes.c_int(flags | os.O_CLOEXEC), ctypes.c_uint(mode), None)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), f"mq_open {name}")

    def send(self, data, priority=1):
        if _libc.mq_send(self.fd, data, ctypes.c_size_t(len(data)), ctypes.c_uint(priority)) < 0:
            raise OSError(ctypes.get_errno(), "mq_send")

    def attributes(self):
        attributes = _Attributes()
        assert _libc.mq_getattr(self.fd, ctypes.byref(attributes)) == 0
        return attributes

    def depth(self):
        return self.attributes().curmsgs

    def message_bytes(self):
        return self.attributes().msgsize

    def close(self):
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def queue_exists(name):
    try:
        Queue(name).close()
        return True
    except OSError as error:
        return error.errno != errno.ENOENT


def queue_unlink(name):
    _libc.mq_unlink(name.encode())


# ---- configuration ----


def libconfig(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) + ("L" if abs(value) > 2**31 - 1 else "")
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{ " + " ".join(f"{k} = {libconfig(v)};" for k, v in value.items()) + " }"
    return "( " + ",\n  ".join(libconfig(v) for v in value) + " )"


def stage(use, settings=None, **keys):
    """One stage of a configuration; `settings` apart from the other keys."""
    return {"use": use, **keys, **({"settings": settings} if settings else {})}


# ---- results ----


def numbers_in(data):
    """The numbers that lines begin with, whatever words follow them."""
    return list(map(int, data.translate(None, b" abcdefghijklmnopqrstuvwxyz-").split()))


def check_each_once(data, first, last):
    """Every number from first to last is there exactly once, one a line."""
    seen = bytearray(last - first + 1)
    numbers = numbers_in(data)
    twice = []
    for n in numbers:
        if seen[n - first]:
            twice.append(n)
        seen[n - first] = 1
    missing = seen.count(0)
    assert not twice and not missing, f"{missing} missing (first: {first + seen.find(0)}), twice: {twice[:10]}"
    assert data.count(b"\n") == len(numbers) == last - first + 1


# ---- the world ----


class Outcome:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n--- out\n{self.out[-2000:]!r}\n--- err\n{self.err[-4000:].decode(errors='replace')}"

    def lines(self):
        return self.out.decode().splitlines()

    def complaints(self):
        """Standard error without the summary."""
        return [l for l in self.err.decode(errors="replace").splitlines() if "jobs done," not in l and "job done," not in l]


class Job:
    """A program that was started: standard output and error go to files, so nothing blocks on them."""

    def __init__(self, world, argv, stdin, env=None, stdout=None, preexec=None):
        self.number = next(_numbers)
        self.out_path = os.path.join(world.folder, f"out.{self.number}")
        self.err_path = os.path.join(world.folder, f"err.{self.number}")
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err,
                env={**world.env, **(env or {})},
                cwd=world.folder,
                preexec_fn=preexec,
            )
        self.pid = self.process.pid

    def write(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_input(self):
        if self.process.stdin:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass

    def out(self):
        return _read(self.out_path)

    def err(self):
        return _read(self.err_path)

    def signal(self, sig):
        self.process.send_signal(sig)

    def wait(self, deadline=DEADLINE):
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args} hangs:\n{self.err().decode(errors='replace')[-4000:]}") from None
        return Outcome(code, self.out(), self.err())


class World:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="sluice-test-", dir="/dev/shm")
        self.id = os.path.basename(self.folder)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "NOTIFY_", "WATCHDOG_", "XDG_"))}
        self.env.update(
            SLUICE_TEST_WORLD=self.id,
            SLUICE_TEST_RUN=os.environ.get("SLUICE_TEST_RUN", ""),
            SLUICE_PLUGIN_PATH=f"{BUILTIN_STAGES}:{TEST_STAGES}",
            RUNTIME_DIRECTORY=os.path.join(self.folder, "runtime"),
            LC_ALL="C.UTF-8",
        )
        self.jobs = []
        self.services = []

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "wb" if isinstance(text, bytes) else "w") as f:
            f.write(text)
        return self.path(name)

    def read(self, name):
        return _read(self.path(name))

    def start(self, *argv, stdin=subprocess.DEVNULL, **keys):
        job = Job(self, argv, stdin, **keys)
        self.jobs.append(job)
        return job

    def call(self, *argv, input=None, deadline=DEADLINE, **keys):
        """Runs a program to its end. `input`: bytes."""
        if input is not None:
            path = self.write(f"in.{next(_numbers)}", input)
            with open(path, "rb") as f:
                return self.start(*argv, stdin=f, **keys).wait(deadline)
        return self.start(*argv, **keys).wait(deadline)

    def run(self, *arguments, input=b"", **keys):
        """sluicectl run"""
        return self.call(SLUICECTL, "run", *arguments, input=input, **keys)

    def service(self, *stages, **top):
        service = Service(self, stages, top)
        self.services.append(service)
        return service

    def processes(self):
        """What was started here and is alive, by its environment (inherited, so grandchildren are found, too)."""
        mark = b"SLUICE_TEST_WORLD=" + self.id.encode()
        return [p for p in all_pids() if mark in _read(f"/proc/{p}/environ").split(b"\0") and is_alive(p)]

    def close(self):
        """Ends what is left. Returns what should not have been there."""
        for job in self.jobs:
            job.close_input()
            if job.process.poll() is None:
                job.process.kill()
                job.process.wait()
        left = []
        try:
            wait_for(lambda: not self.processes(), "the end of all workers", 10)
        except AssertionError:
            for pid in self.processes():
                left.append(f"process {pid} {process_title(pid)}")
                kill(pid)
        for service in self.services:
            left += service.remove()
        shutil.rmtree(self.folder)
        return left


class Service:
    """An instance of sluiced. Ends with purge, checked by the world's close()."""

    def __init__(self, world, stages, top):
        self.world = world
        self.name = top.pop("name", f"test-{os.getpid()}-{next(_numbers)}")
        self.runtime = world.path(f"runtime.{self.name}")
        self.env = {"RUNTIME_DIRECTORY": self.runtime}
        self.queues = []
        self.job = None
        self.configure(*stages, **top)

    def configure(self, *stages, **top):
        """Takes effect with the next start."""
        for i, s in enumerate(stages):
            self.queues += [self.queue_name("in" if i == 0 else s.get("name", s["use"]))]
        self.queues = sorted({*self.queues, self.queue_name("results")})
        text = "".join(f"{k} = {libconfig(v)};\n" for k, v in {"name": self.name, **top}.items())
        self.config = self.world.write(f"{self.name}.conf", text + f"stages = {libconfig(list(stages))};\n")

    def queue_name(self, name):
        return f"/sluice.{self.name}.{name}"

    def start(self, ready=True, env=None, arguments=()):
        path = self.world.path(f"notify.{next(_numbers)}")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(path)
        self.notify.setblocking(False)
        self.notified = ""
        self.job = self.world.start(
            SLUICED, "-c", self.config, *arguments, env={**self.env, "NOTIFY_SOCKET": path, **(env or {})}
        )
        if ready:
            self.wait_notified("READY=1")
        return self

    @property
    def pid(self):
        return self.job.pid

    def log(self):
        return self.job.err().decode(errors="replace")

    def wait_notified(self, text):
        def look():
            try:
                while True:
                    self.notified += self.notify.recv(4096).decode() + "\n"
            except BlockingIOError:
                pass
            assert self.job.process.poll() is None or text in self.notified, f"ended early:\n{self.log()}"
            return text in self.notified.splitlines()

        wait_for(look, f"{text} from sluiced")

    def wait_log(self, pattern):
        return wait_for(lambda: re.search(pattern, self.log()), f"{pattern!r} in the log")

    def workers(self, stage_name=None):
        return workers_of(self.pid, stage_name)

    def kill(self):
        """kill -9; returns when its workers are gone, too."""
        workers = self.workers()
        self.job.process.kill()
        self.job.wait()
        wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")
        self.notify.close()

    def stop(self, sig=signal.SIGTERM):
        """In order, as `sig` does it."""
        self.job.signal(sig)
        outcome = self.job.wait()
        self.notify.close()
        assert outcome.code == 0, outcome
        return outcome

    def ctl(self, command, *arguments, **keys):
        return self.world.call(SLUICECTL, command, "-i", self.name, *arguments, env=self.env, **keys)

    def submit(self, *arguments, **keys):
        return self.ctl("submit", *arguments, **keys)

    def remove(self):
        """What of the instance purge leaves behind."""
        left = []
        if os.path.isdir(self.runtime):
            outcome = self.ctl("purge", "--force")
            self.world.jobs.pop()
            if outcome.code not in (0, 3):
                left.append(f"purge: {outcome}")
            left += [f"file {name}" for name in os.listdir(self.runtime) if name not in ("lock",)]
        for name in self.queues:
            if queue_exists(name):
                left.append(f"queue {name}")
                queue_unlink(name)
        return left
