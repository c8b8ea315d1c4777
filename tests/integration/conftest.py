import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    setattr(item, "report_" + report.when, report)


@pytest.fixture
def world(request):
    """A folder, an environment, and the promise that nothing of it is left."""
    w = harness.World()
    yield w
    report = getattr(request.node, "report_call", None)
    if report is not None and report.failed:
        for service in w.services:
            if service.job:
                print(f"---- log of {service.name}\n{service.log()[-6000:]}")
    left = w.close()
    assert not left, left
