"""sluiced --check, and its command line."""

import glob
import os
import re
import shutil

import pytest
from harness import SLUICECTL, SLUICED, SOURCE, libconfig, stage

CONFIGURATIONS = sorted(
    glob.glob(os.path.join(SOURCE, "conf", "*.conf")) + glob.glob(os.path.join(SOURCE, "conf", "examples", "*.conf"))
)


def check(world, config, **keys):
    return world.call(SLUICED, "--check", "-c", config, **keys)


def write(world, *stages, **top):
    text = "".join(f"{k} = {libconfig(v)};\n" for k, v in top.items())
    return world.write("t.conf", text + f"stages = {libconfig(list(stages))};\n")


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=os.path.basename)
def test_every_configuration_that_comes_with_sluice_is_good(world, config):
    # Examples may name files that only exist where they are used; the check is about the text.
    outcome = check(world, config)
    assert outcome.code == 0, outcome
    assert re.match(rf"{re.escape(config)}: OK: \d+ stages; \d+ queue", outcome.out.decode()), outcome
    assert outcome.err == b"", outcome


def test_there_are_configurations():
    assert any(c.endswith("/prime.conf") for c in CONFIGURATIONS) and len(CONFIGURATIONS) >= 3


def test_the_prime_pipeline_runs(world):
    outcome = world.run("-c", os.path.join(SOURCE, "conf", "prime.conf"))
    assert outcome.code == 0 and outcome.out == b"", outcome
    assert len(re.findall(r" \d+ prime$", outcome.err.decode(), re.M)) == 168, outcome
    assert b"999 jobs done, 0 failed" in outcome.err


def test_the_example_that_reads_a_file_runs_as_a_service(world):
    """From a copy, with the paths that it names put below the test's folder."""
    config = os.path.join(SOURCE, "conf", "examples", "lines-to-file.conf")
    with open(config) as f:
        text = f.read()
    paths = re.findall(r'path = "([^"]+)"', text)
    assert len(paths) == 2, paths
    text = text.replace(paths[0], world.path("in")).replace(paths[1], world.path("out"))
    world.write("in", "".join(f"{n}\n" for n in range(1000)))
    outcome = world.run("-c", world.write("copy.conf", text))
    assert outcome.code == 0, outcome
    assert world.read("out").count(b"\n") == 1000 and world.read("out").count(b" prime\n") in (0, 168)


def test_every_error_is_reported_with_its_line(world):
    config = world.write(
        "bad.conf",
        'name = "Bad Name";\n'
        "on_stop = 3;\n"
        "stages = (\n"
        '  { use = "range"; settings = { to = 9; form = 1; }; },\n'
        '  { use = "identity"; wrokers = 2; linger = 5; },\n'
        '  { use = "primes"; next = "nowhere"; }\n'
        ");\n",
    )
    outcome = check(world, config)
    assert (outcome.code, outcome.out) == (1, b""), outcome
    errors = outcome.err.decode().splitlines()
    found = sorted(int(re.match(rf"{re.escape(config)}:(\d+): ", e).group(1)) for e in errors)
    assert found == [1, 2, 4, 5, 5, 6, 6], errors
    for hint in ("from", "workers", "prime"):
        assert f'"{hint}"' in outcome.err.decode() or f"`{hint}`" in outcome.err.decode(), (hint, errors)


def test_a_start_with_these_errors_is_78(world):
    config = world.write("bad.conf", 'name = "x";\nstages = ( { use = "primes"; } );\n')
    assert check(world, config).code == 1
    assert world.call(SLUICED, "-c", config).code == 78


@pytest.mark.parametrize(
    "queue, limit",
    [
        ({"depth": 60000, "message": "256B"}, "fs.mqueue.msg_max"),
        ({"depth": 1, "message": "16MiB"}, "fs.mqueue.msgsize_max"),
    ],
)
def test_a_queue_beyond_the_kernels_limits_is_told(world, queue, limit):
    outcome = check(world, write(world, stage("identity", queue=queue)))
    if outcome.code == 0:
        pytest.skip("this machine's limits are high enough")
    assert outcome.code == 1 and limit in outcome.err.decode(), outcome


def test_a_plan_that_does_not_fit_is_told_with_its_sum_and_the_limit(world):
    stages = [stage("identity", name=f"s{n}", queue={"depth": 10, "message": "8KiB"}) for n in range(64)]
    outcome = check(world, write(world, *stages))
    with_limit = re.search(r"RLIMIT_MSGQUEUE", outcome.err.decode() + outcome.out.decode())
    if outcome.code == 0:
        pytest.skip("this machine's limits are high enough")
    assert outcome.code == 1 and with_limit, outcome
    assert str(64 * 10 * (8192 + 96)) in outcome.err.decode(), outcome
    refused = world.call(SLUICED, "-c", world.path("t.conf"))
    assert refused.code == 1 and b"RLIMIT_MSGQUEUE" in refused.err, refused


def test_sixty_four_stages_can_be_planned(world):
    outcome = check(world, write(world, *[stage("identity", name=f"s{n}") for n in range(64)]))
    assert outcome.code == 0, outcome


def test_a_plugin_of_another_abi_is_refused(world):
    source = world.write(
        "old.c",
        '#include <sluice/stage.h>\n'
        "static SluiceAnswer run(SluiceContext *c, void *s, const SluiceJob *j) { return SLUICE_DONE; }\n"
        "SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {\n"
        '  .abi = SLUICE_STAGE_ABI + 1, .name = "old", .summary = "x", .kind = SLUICE_SINK, .run = run };\n',
    )
    compiler = os.environ.get("CC") or "cc"
    if not shutil.which(compiler):
        pytest.skip("no compiler")
    built = world.call(
        compiler, "-shared", "-fPIC", "-I", os.path.join(SOURCE, "include"), "-o", world.path("old.so"), source
    )
    assert built.code == 0, built
    outcome = check(world, write(world, stage("./old.so")))
    assert outcome.code == 1 and "ABI" in outcome.err.decode(), outcome


def test_a_plugin_that_crashes_when_loaded_does_not_take_the_check_with_it(world):
    source = world.write("bomb.c", "__attribute__((constructor)) static void boom(void) { __builtin_trap(); }\n")
    compiler = os.environ.get("CC") or "cc"
    if not shutil.which(compiler):
        pytest.skip("no compiler")
    assert world.call(compiler, "-shared", "-fPIC", "-o", world.path("bomb.so"), source).code == 0
    outcome = check(world, write(world, stage("./bomb.so")))
    assert outcome.code == 1 and b"t.conf:" in outcome.err and b"bomb" in outcome.err, outcome


@pytest.mark.parametrize("program", [SLUICED, SLUICECTL])
def test_help_and_version(world, program):
    outcome = world.call(program, "--help")
    assert outcome.code == 0 and outcome.out.startswith(b"Usage: ") and outcome.err == b"", outcome
    outcome = world.call(program, "--version")
    assert outcome.code == 0 and re.fullmatch(rb"sluice(d|ctl) \d+\.\d+\.\d+\n", outcome.out), outcome


@pytest.mark.parametrize("arguments", [[], ["-c"], ["--nonsense"], ["-c", "x", "y"], ["--check"]])
def test_wrong_usage_of_sluiced(world, arguments):
    outcome = world.call(SLUICED, *arguments)
    assert (outcome.code, outcome.out) == (2, b"") and outcome.err, outcome


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["submit", "--nonsense"], ["purge", "x", "y"]])
def test_wrong_usage_of_sluicectl(world, arguments):
    outcome = world.call(SLUICECTL, *arguments)
    assert (outcome.code, outcome.out) == (2, b"") and outcome.err, outcome
