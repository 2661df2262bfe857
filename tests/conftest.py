"""What all test files share: bounded Hypothesis runs, and a way to make threads race."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# The tests also run where the project is not installed. pytest finds `src` by its settings, child processes by this.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A shell ignores SIGINT and SIGQUIT for what it starts in the background, and nohup ignores SIGHUP. Python leaves that
# so. The tests need a real Ctrl-C, and programs that have the signals as they usually are.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("SIGQUIT", "SIGHUP"):
    if signal.getsignal(getattr(signal, _name, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), signal.SIG_DFL)

# CI always uses the same seed, so that a failure can be repeated. `HYPOTHESIS_PROFILE=search` tries new examples. In CI
# the newest interpreter tries all of them, and each other tries fewer (`brief`).
hypothesis.settings.register_profile("ci", max_examples=500, stateful_step_count=30, deadline=None, derandomize=True)
hypothesis.settings.register_profile("brief", max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", max_examples=5000, stateful_step_count=60, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="module", autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what SDKs left behind: event loops and sockets, which another module's tests would be warned of.

    What lives on, the SDKs themselves above all, is set aside (`gc.freeze`): many tests collect, and each would look at
    all of that again.
    """
    yield
    with warnings.catch_warnings():
        if request.path.parent.name == "metering":
            warnings.simplefilter("ignore", ResourceWarning)
            asyncio.set_event_loop(None)  # the `run_sync` of some SDKs leaves a loop there
        gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _forked_children_end() -> Iterator[None]:
    """End a child that a test forked and that went on as a second pytest: each would fork again."""
    here = os.getpid()
    yield
    if os.getpid() != here:
        os._exit(99)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a test was skipped although it must not be: CI installs everything for one run of the tests."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TOKEN_BUDGET_SKIP_NOTHING") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def racing() -> Iterator[None]:
    """Make the interpreter switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="explore every schedule and every point; takes long")


# Proofs trace by themselves, and a child that is forked under a tracer inherits its locks: pytest-cov leaves these out.
_UNTRACED = ("proof/", "stores/test_interleavings_of_steps.py", "stores/test_faults.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(_UNTRACED):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "no_cover: pytest-cov pauses while the test runs")
    if config.getoption("--full"):
        config.option.timeout = 0  # the largest triples take minutes


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the proofs run in full (``--full``)."""
    return bool(request.config.getoption("--full"))


_EXPLORED: dict[str, int] = {}


@pytest.fixture(scope="session")
def explored() -> dict[str, int]:
    """How many schedules were explored, by scenario."""
    return _EXPLORED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _EXPLORED:
        total = sum(_EXPLORED.values())
        terminalreporter.write_line(f"{total:,} schedules of {len(_EXPLORED)} scenarios were explored")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, with the scheduler's lock in place of its own. Garbage is collected only between tests."""
    import token_budget
    from scheduler import ModelLock
    from token_budget import _bells, _family

    monkeypatch.setattr(_family, "_new_lock", ModelLock)
    monkeypatch.setattr(_bells, "_new_lock", ModelLock)
    gc.disable()
    gc.freeze()  # the collection below then visits only what the test made, not all of pytest
    yield token_budget
    with warnings.catch_warnings():  # an abandoned run leaves open reservations behind
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.unfreeze()
    gc.enable()
