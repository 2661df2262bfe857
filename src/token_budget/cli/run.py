"""``token-budget run``: a program whose calls to models are capped before they are sent.

The order is always the same. What can go wrong without the program is tried before it is started: the options, the
libraries, the report's file, the display, the budget, the gateway. Once the program has ended, the gateway settles what
is open, and then the numbers are final.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from token_budget import BudgetExceeded
from token_budget.cli._run_options import (
    NO_GATEWAY,
    NO_REPORT,
    REQUIRED,
    USAGE,
    CannotStartError,
    RunOptions,
    checked,
    declare,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from token_budget.cli._run_budget import RunBudget
    from token_budget.cli._run_child import Child
    from token_budget.cli._run_display import Display
    from token_budget.cli._run_status import RunStatus
    from token_budget.cli._run_summary import ReportFile
    from token_budget.gateway import Gateway
    from token_budget.gateway._upstreams import Upstream
    from token_budget.metering import CallRecord, Meter

INSTALL = "pip install 'token-budget-pool[cli]'"
PROGRAM = "token-budget"
LIBRARIES = ("aiohttp", "psutil", "truststore")
_SHORT = 0.1  # seconds: a program that ends sooner needs no prices
_UNSEEN = (
    "warning: no call to a model came through the gateway, so nothing was capped. Does the program call one? Does it "
    "take its provider's base URL from the environment (OPENAI_BASE_URL, ANTHROPIC_BASE_URL, ...), and is that "
    "provider known (--upstream)?"
)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``run`` and its options."""
    parser = declare(commands)
    parser.set_defaults(run=run, parser=parser)


def run(options: RunOptions) -> int:
    """Run the program, and return the exit status that this process is to end with.

    Where SIGINT ended the program, this process ends itself by SIGINT, and nothing is returned.
    """
    from token_budget.cli._run_child import inherited
    from token_budget.cli._run_notes import say

    checked(options)
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        options.parser.error(f"{' and '.join(missing)} must be installed: {INSTALL}")
    one = OneRun(options, inherited(os.environ))
    try:
        code = one.go()
    except CannotStartError as error:
        if error.status == USAGE:
            options.parser.error(str(error))
        say(f"error: {error}")
        return error.status
    return code if one.child is None else one.child.finish(code)


class OneRun:
    """One run, from its options to its exit status: ``OneRun(options, environ).go()``.

    Args:
        options: the parsed options, checked.
        environ: the environment of this process; the program's is made of it.
    """

    def __init__(self, options: RunOptions, environ: Mapping[str, str]) -> None:
        """Prepare it; nothing is opened or started."""
        from token_budget.cli._run_notes import Notes

        self.options = options
        self.environ = environ
        program = options.program[0]
        self.command: str = os.path.basename(program) or program  # noqa: PTH119 - nothing is there
        self.notes: Notes = Notes()
        self.child: Child | None = None
        self.budget: RunBudget | None = None
        self.started: bool = False
        self.ended: threading.Event = threading.Event()
        self.cap_reached: str | None = None

    def go(self) -> int:
        """Do all of it, and return the exit status.

        Raises:
            CannotStartError: the program was not started, for a reason that is not the program's.
        """
        self.notes.open()
        try:
            report, upstreams, display = self._prepare()
            with ExitStack() as stack:
                stack.callback(display.close)
                budget, gateway = self._open(stack, upstreams)
                code = self._run_program(budget, gateway, upstreams, display)
                gateway.close()
                display.close()
                return self._finish(budget, gateway, code, report)
        finally:
            self.notes.close()

    def look(self) -> RunStatus:
        """Return what this run has spent, holds and refused. It waits for nothing, and any thread may call it."""
        budget = self.budget
        assert budget is not None  # noqa: S101 - who looks is started after it
        return self._status(budget, budget.whole())

    # ---------------------------------------------------------------- before the program

    def _prepare(self) -> tuple[ReportFile | None, dict[str, Upstream], Display]:
        """Try what can be wrong with the options, and open nothing."""
        from token_budget.cli._run_display import display
        from token_budget.cli._run_summary import ReportFile
        from token_budget.gateway._environment import child_environment
        from token_budget.gateway._upstreams import upstreams

        options = self.options
        try:
            table = upstreams(self.environ, options.upstream)
            child_environment(self.environ, table, "", "", hold_keys=options.hold_keys)  # it may refuse the keys
            shown = display(options.progress, self.look, stderr=sys.stderr, stdout=sys.stdout)
        except ValueError as error:
            raise CannotStartError(error, USAGE) from None
        try:
            report = None if options.report is None else ReportFile(options.report)
        except OSError as error:
            raise CannotStartError(f"--report: {error.strerror or error}: {options.report}", NO_REPORT) from None
        return report, table, shown

    def _open(self, stack: ExitStack, upstreams: Mapping[str, Upstream]) -> tuple[RunBudget, Gateway]:
        """Open the budget and start the gateway; the stack closes them."""
        from token_budget.cli._run_budget import open_budget
        from token_budget.cli._run_signals import kept_from_threads
        from token_budget.gateway import Gateway

        with kept_from_threads():
            self.budget = budget = stack.enter_context(open_budget(self.options))
            gateway = Gateway(budget.meter, upstreams, run=budget.run, status=lambda: self.look().to_dict())
            stack.callback(gateway.close)
            try:
                gateway.start()
            except OSError as error:
                raise CannotStartError(f"the gateway cannot listen: {error.strerror or error}", NO_GATEWAY) from None
            except RuntimeError as error:
                raise CannotStartError(f"the gateway cannot be started: {error}", NO_GATEWAY) from None
        return budget, gateway

    # ---------------------------------------------------------------- the program

    def _run_program(
        self, budget: RunBudget, gateway: Gateway, upstreams: Mapping[str, Upstream], display: Display
    ) -> int:
        """Start the program, wait for its end, and return its exit status."""
        from token_budget.cli._run_child import Child, exit_code_of, left_behind
        from token_budget.cli._run_files import publish
        from token_budget.cli._run_notes import say
        from token_budget.gateway._environment import child_command, child_environment

        where = (gateway.base, gateway.secret)
        environ, gateway.keys = child_environment(self.environ, upstreams, *where, hold_keys=self.options.hold_keys)
        command, more = child_command(self.options.program, *where, environ)
        self.child = child = Child(command, {**environ, **more})
        budget.meter.subscribe(self._heard)
        try:
            child.start()
        except (OSError, RuntimeError) as error:  # the latter: there is no thread to watch over it
            say(f"error: {self.options.program[0]}: {getattr(error, 'strerror', None) or error}")
            return exit_code_of(error)
        self.started = True
        self.notes.hush()
        file = None
        try:
            file = publish(gateway.base, self.command)
            display.start()
            loads = threading.Thread(target=_load_prices, args=(budget.meter, self.ended), daemon=True)
            with suppress(RuntimeError):  # without a thread of the system's, the first call loads them
                loads.start()
            code = child.wait()
        except BaseException:  # a fault of ours: the program goes on, without a gateway
            child.close()
            raise
        finally:
            self.ended.set()
            if file is not None:
                file.remove()
        self.notes.tell()
        if (left := left_behind(child.left)) is not None:
            say(left)
        return code

    def _heard(self, record: CallRecord) -> None:
        """Hear of a call that has ended or was refused, in the gateway's thread."""
        error = sys.exc_info()[1]  # the meter tells of a refusal while it handles it
        if record.status != "refused" or self.child is None or self.budget is None:
            return
        used_up = False
        if isinstance(error, BudgetExceeded) and error.exhausted:
            used_up, self.cap_reached = True, self.budget.cap_of(error)
        if self.options.on_exceeded == "end" and (used_up or record.error == "LoopDetected"):
            self.child.end()

    def _status(self, budget: RunBudget, pool: dict[str, Any] | None) -> RunStatus:
        from token_budget.cli._run_status import RunStatus

        report, own = budget.run.report(), budget.run.pool.snapshot()
        return RunStatus(
            command=self.command,
            pid=None if self.child is None else self.child.pid,
            seconds=report["seconds"],
            usd_nanos=own.usd_used_nanos,
            tokens=own.tokens_used,
            held_usd_nanos=own.usd_reserved_nanos,
            held_tokens=own.tokens_reserved,
            in_flight=own.in_flight,
            calls=report["call_count"],
            refused=report["refused"],
            usd_cap_nanos=budget.usd_cap_nanos,
            token_cap=budget.token_cap,
            cap_reached=self.cap_reached,
            by_model=report["by_model"],
            pool=pool,
        )

    # ---------------------------------------------------------------- after it

    def _finish(self, budget: RunBudget, gateway: Gateway, code: int, report: ReportFile | None) -> int:
        """Say and write what was spent, and return the exit status."""
        from token_budget.cli._run_notes import say
        from token_budget.cli._run_summary import report as as_report
        from token_budget.cli._run_summary import summary_line

        status = self._status(budget, budget.look_at_last())
        unseen = self.started and not (gateway.metered or status.refused)
        if unseen and self.options.require_metered and code == 0:
            code = REQUIRED
        failed = None
        if report is not None:  # before anything is said: standard error may be full
            try:
                report.write(as_report(status, code))
            except OSError as error:
                failed = f"error: --report: {error.strerror or error}: {self.options.report}"
                code = code or NO_REPORT
        if unseen:
            say(_UNSEEN if not gateway.passed else f"{_UNSEEN} {gateway.passed} other requests were forwarded")
        if self.started and self.options.progress != "off":
            say(summary_line(status).removeprefix(f"{PROGRAM}: "))
        if failed is not None:
            say(failed)
        return code


def _load_prices(meter: Meter, ended: threading.Event) -> None:
    """Load the list of prices while the program starts: else its first call waits for that, up to a second."""
    if ended.wait(_SHORT):
        return
    with suppress(Exception):  # the call that needs a price says what is wrong
        meter.prices.data_date  # noqa: B018
