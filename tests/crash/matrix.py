"""The matrix: all points, times all faults.

Which sites each act of the scenario comes by is found out by living through it with no fault. Each site and fault that can
befall it then make one case: in one of the acts that come by, at one of the times that they do, drawn from the seed.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from random import Random
from typing import NamedTuple

from tests.crash.faults import FAULTS
from tests.crash.protocol import ACTS, Act, Fault, Report, Request
from tests.crash.sites import Site, all_sites
from tests.crash.tracing import Point
from tests.crash.ward import Ward

_LIKELY = 2 / 3
"""The part of the times that a site was met of which another life will come by too."""


class Found(NamedTuple):
    """What there is to strike at.

    Args:
        met: how often each act comes by each site.
        asking: the sites at which something outside the process is asked.
        networked: whether there are connections that can be cut at any place.
    """

    met: Mapping[Act, Mapping[str, int]]
    asking: Collection[str]
    networked: bool

    @property
    def sites(self) -> Sequence[str]:
        """The sites that some act comes by."""
        return sorted({site for sites in self.met.values() for site in sites})

    def unmet(self) -> Sequence[Site]:
        """Return the sites that no act comes by, of the core and of the adapters that are used."""
        met = set(self.sites)
        used = {_adapter(name) for name in met}
        return [site for name, site in all_sites().items() if name not in met and (site.is_core or _adapter(name) in used)]

    def faults_at(self, site: str) -> Sequence[Fault]:
        """Return what can befall a site: a reply is lost only where there is one."""
        asks = site in self.asking
        left_out: set[Fault] = set() if asks else {"reply lost"} if self.networked else {"reply lost", "connection"}
        return [fault for fault in FAULTS if fault not in left_out]

    def cases(self, seed: int, sites: Collection[str] | None = None) -> Sequence[Request]:
        """Return a case for each site, or each of some, and each fault that can befall it."""
        chosen = self.sites if sites is None else sites
        return [self._case(seed, site, fault) for site in chosen for fault in self.faults_at(site)]

    def _case(self, seed: int, site: str, fault: Fault) -> Request:
        chance = Random(f"{seed} {site} {fault}")
        act: Act = chance.choice([act for act in ACTS if site in self.met.get(act, {})])
        nth = chance.randint(1, max(1, int(self.met[act][site] * _LIKELY)))
        return Request(act, str(Point(site, nth)), fault)

    def surer(self, request: Request) -> Request:
        """Return a case of the same site and fault that is sure to happen."""
        site = Point.of(request.point).site
        act = max(ACTS, key=lambda act: self.met.get(act, {}).get(site, 0))
        return Request(act, str(Point(site, 1)), request.fault, request.mutant)


def _adapter(name: str) -> str:
    return name.partition(".")[0]


def find(ward: Ward, *, networked: bool) -> Found:
    """Live through each act, and see what there is.

    Raises:
        AssertionError: something is broken although nothing went wrong.
    """
    met: dict[Act, dict[str, int]] = {}
    asking: set[str] = set()
    for report in ward.run([Request(act) for act in ACTS]):
        if report.violations:
            raise AssertionError(f"{report.request.act}, with no fault: {report.violations}\n{report.log}")
        met[report.request.act] = report.met
        asking |= set(report.asking)
    return Found(met, asking, networked)


def run(ward: Ward, found: Found, requests: Sequence[Request]) -> Generator[Report, None, None]:
    """Run cases; those whose point did not come run again at one that is sure to."""
    missed: list[Request] = []
    with closing(ward.run(requests)) as reports:
        for report in reports:
            if report.struck or report.violations:
                yield report
            else:
                missed.append(found.surer(report.request))
    with closing(ward.run(missed)) as reports:
        yield from reports
