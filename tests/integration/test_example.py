"""What an author of stages does: install sluice, build the example outside of the tree, run it."""

import os
import shutil

import pytest
from harness import BUILD, SOURCE


@pytest.fixture
def installed(world):
    """A prefix that sluice is installed below, somewhere else than it was configured for."""
    meson = shutil.which("meson")
    if not meson or not shutil.which("make") or not shutil.which("pkg-config"):
        pytest.skip("meson, make and pkg-config are needed")
    outcome = world.call(meson, "install", "--no-rebuild", "--quiet", "-C", BUILD, "--destdir", world.path("root"))
    assert outcome.code == 0, outcome
    for folder, _, files in os.walk(world.path("root")):
        if os.path.basename(folder) == "bin" and "sluicectl" in files:
            return Installed(world, os.path.dirname(folder))
    raise AssertionError("sluicectl is not installed")


class Installed:
    def __init__(self, world, prefix):
        self.world, self.prefix = world, prefix
        self.env = {"PATH": os.path.join(prefix, "bin") + ":" + world.env["PATH"]}
        for folder, _, files in os.walk(prefix):
            if "sluice.pc" in files:
                # The .pc names the configured prefix; below DESTDIR it is another.
                self.env.update(PKG_CONFIG_LIBDIR=folder, PKG_CONFIG_SYSROOT_DIR=world.path("root"))
        # Nothing may be found in the build tree.
        self.env.update(SLUICE_PLUGIN_PATH="", SLUICE_LIBEXEC="")

    def call(self, *argv, **keys):
        return self.world.call(*argv, env={**self.env, **keys.pop("env", {})}, **keys)

    def copy_example(self):
        folder = self.world.path("stage")
        shutil.copytree(os.path.join(SOURCE, "examples", "stage"), folder)
        for name in os.listdir(folder):
            if name.endswith(".so"):
                os.unlink(os.path.join(folder, name))
        return folder


def test_an_installed_sluice_finds_its_parts(installed):
    outcome = installed.call("sluicectl", "run", "-q", "range:to=998", "prime")
    assert outcome.code == 0 and outcome.out.count(b" prime\n") == 168, outcome


def test_the_prefix_can_be_moved(installed):
    moved = installed.world.path("moved")
    os.rename(installed.prefix, moved)
    outcome = installed.world.call(
        os.path.join(moved, "bin", "sluicectl"), "run", "-q", "range:to=998", "prime", env={"SLUICE_PLUGIN_PATH": ""}
    )
    assert outcome.code == 0 and outcome.out.count(b" prime\n") == 168, outcome


def test_the_example_is_built_outside_of_the_tree_and_runs(installed):
    folder = installed.copy_example()
    built = installed.call("make", "-C", folder, "--no-print-directory")
    assert built.code == 0 and built.err == b"", built

    checked = installed.call("sluiced", "--check", "-c", os.path.join(folder, "reverse.conf"))
    assert checked.code == 0 and checked.err == b"", checked

    outcome = installed.call(
        "sluicectl", "run", "-q", "--keep-order", os.path.join(folder, "reverse.so"), input="abc\nhello\näöü\n".encode()
    )
    assert (outcome.code, outcome.out.decode()) == (0, "cba\nolleh\nüöä\n"), outcome

    # By name, from a folder of one's own.
    outcome = installed.call("sluicectl", "run", "-q", "reverse", input=b"abc\n", env={"SLUICE_PLUGIN_PATH": folder})
    assert (outcome.code, outcome.out) == (0, b"cba\n"), outcome


def test_the_headers_stand_alone_in_c_and_cpp(installed):
    for compiler, language, standard in (("cc", "c", "c11"), ("c++", "c++", "c++20")):
        if not shutil.which(compiler):
            continue
        source = installed.world.write("t." + language, "#include <sluice/stage.h>\n#include <sluice/sluice.h>\n")
        flags = installed.call("pkg-config", "--cflags", "sluice").out.decode().split()
        outcome = installed.call(
            *(compiler, f"-std={standard}", "-x", language, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags, source)
        )
        assert outcome.code == 0, outcome
