"""A pytest plugin that prints, after a run, a certificate for each adapter whose contract suite ran.

Switch it on in the top ``conftest.py``: ``pytest_plugins = ["outboxkit.testing.certificates"]``.

An adapter declares what it cannot do on its suite, case by case: ``cannot = {"test_...": "why"}``. Such a case runs all the
same; that it fails is no failure of the run, and both that and a declared case that passes are said. What fails and was not
declared fails the run.
"""

import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from outboxkit.testing.contract_broker import BrokerContract
from outboxkit.testing.contract_store import StoreContract

_CONTRACTS: Mapping[type[Any], str] = {BrokerContract: "the contract of a broker", StoreContract: "the contract of a store"}
_KEY = pytest.StashKey[dict[str, "Certificate"]]()
_Cases = dict[str, str]


@dataclass
class Certificate:
    """What came of one adapter's suite.

    Attributes:
        adapter: the suite's name, without its ``Test``.
        where: where the suite stands.
        suite: its class.
        cannot: what it declares it cannot do, and why.
        outcomes: of each case that ran, ``passed`` or how it ended otherwise; one that ran in several ways passed in all.
    """

    adapter: str
    where: str
    suite: type[Any]
    cannot: Mapping[str, str]
    outcomes: _Cases = field(default_factory=_Cases)

    @property
    def parts(self) -> Sequence[tuple[str, Sequence[str]]]:
        """The contract's parts, each with its cases."""
        contract = self._contract
        owners = [contract, *(base for base in contract.__mro__ if base is not contract)]
        found = [(_title(owner), [name for name in vars(owner) if name.startswith("test_")]) for owner in owners]
        return [(title, cases) for title, cases in found if cases]

    @property
    def _contract(self) -> type[Any]:
        return next(contract for contract in _CONTRACTS if issubclass(self.suite, contract))

    @property
    def cases(self) -> Sequence[str]:
        """The contract's cases."""
        return [case for _, cases in self.parts for case in cases]

    def _with(self, outcome: str) -> Sequence[str]:
        return [case for case in self.cases if self.outcomes.get(case) == outcome]

    def record(self, case: str, outcome: str) -> None:
        """Note how a case ended; what went wrong once stays so."""
        if self.outcomes.get(case, "passed") == "passed":
            self.outcomes[case] = outcome

    def lines(self) -> Iterable[str]:
        """Return what is printed."""
        kept, failed = self._with("passed"), self._with("failed")
        missing = [case for case in self.cases if case not in self.outcomes or self.outcomes[case] == "skipped"]
        unable = [case for case in failed if case in self.cannot]
        broken = [case for case in failed if case not in self.cannot]
        count = f"{len(kept)} of {len(self.cases)} cases passed"
        yield f"{self.adapter} {self._verdict(broken, unable, missing)} ({count}; {self.where})"
        for title, cases in self.parts:
            yield f"  {sum(case in kept for case in cases):3} of {len(cases):3}  {title}"
        for case in broken:
            yield f"  FAILED    {case}"
        for case in unable:
            yield f"  cannot    {case}: {self.cannot[case]}"
        for case in self.cannot:
            if case in kept:
                yield f"  can       {case}, although it declares that it cannot: take that back"
        if missing and self.outcomes:
            yield f"  not run   {len(missing)} cases, of which nothing is known"

    def _verdict(self, broken: Sequence[str], unable: Sequence[str], missing: Sequence[str]) -> str:
        contract = _CONTRACTS[self._contract]
        if broken:
            return f"does not keep {contract}"
        if missing:
            return f"was not shown to keep {contract}"
        return f"keeps {contract}" + (" but for what it declares" if unable else "")


def _title(part: type[Any]) -> str:
    documented = sys.modules[part.__module__].__doc__ if part not in _CONTRACTS else "As a whole"
    return (documented or part.__name__).splitlines()[0].rstrip(".")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Have declared cases run without failing the run."""
    certificates = _certificates(config)
    for item in items:
        suite: Any = getattr(item, "cls", None)
        if not (isinstance(suite, type) and issubclass(suite, tuple(_CONTRACTS))):
            continue
        where = item.nodeid.rpartition("::")[0]
        cannot: Mapping[str, str] = getattr(suite, "cannot", {})
        made = Certificate(suite.__name__.removeprefix("Test"), where, suite, cannot)
        certificate = certificates.setdefault(where, made)
        if unknown := cannot.keys() - set(certificate.cases):
            raise pytest.UsageError(f"{where} declares that it cannot do {min(unknown)}, which is no case of its contract")
        if _case(item) in cannot:
            item.add_marker(pytest.mark.xfail(reason=cannot[_case(item)], strict=False))


def _certificates(config: pytest.Config) -> dict[str, Certificate]:
    return config.stash.setdefault(_KEY, {})


def _case(item: pytest.Item) -> str:
    name: str = getattr(item, "originalname", None) or item.name
    return name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note how a case ended."""
    report = yield
    certificate = _certificates(item.config).get(item.nodeid.rpartition("::")[0])
    if certificate is not None and (report.when == "call" or report.outcome != "passed"):
        declared = hasattr(report, "wasxfail") and report.outcome == "skipped"
        certificate.record(_case(item), "failed" if declared else report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the certificates of all suites of which something ran."""
    certificates = [each for each in _certificates(config).values() if each.outcomes]
    if certificates:
        terminalreporter.section("certificates")
    for certificate in certificates:
        for line in certificate.lines():
            terminalreporter.write_line(line)
