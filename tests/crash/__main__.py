"""Every await of the library, times six faults: ``python -m tests.crash [--store postgres] [--broker redis]``.

A fault is put at one await of a process that plays one act of a scenario (publish, consume, retry, take over, recover,
share, shut down); then another process goes on, until all is quiet, and what both left behind is looked at from outside:
nothing lost, nothing invented, nothing twice, each key in order, no loop met an error nobody expected. ``--point`` repeats
a case alone.
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random
from typing import get_args
from zlib import crc32

import click

from tests.crash.faults import FAULTS
from tests.crash.matrix import Found, find, run
from tests.crash.outside import BrokerKind, StoreKind
from tests.crash.protocol import ACTS, Act, Fault, Report, Request
from tests.crash.sites import all_sites
from tests.crash.tracing import Point
from tests.crash.ward import Ward

_LOG_CHARACTERS = 3000


@click.command(help=__doc__)
@click.option("--store", type=click.Choice(get_args(StoreKind)), default="sqlite", show_default=True)
@click.option("--broker", type=click.Choice(get_args(BrokerKind)), default="embedded", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Draws the acts, and which of the times a site is come by.")
@click.option("--part", type=click.Choice(["all", "core", "adapters"]), default="all", show_default=True, help="Whose awaits.")
@click.option(
    "--named", multiple=True, help="Only awaits with this in their name, such as retention.; several: with any of them."
)
@click.option("--sample", type=int, help="So many cases only, drawn from the seed.")
@click.option("--share", type=(int, int), default=(1, 1), help="2 4: the second quarter, the same cases each time.")
@click.option("--minutes", type=float, help="Begin with nothing more after so long.")
@click.option("--side-by-side", default=4, show_default=True, help="Cases at once.")
@click.option("--act", type=click.Choice(ACTS), help="With --point: where it is.")
@click.option("--point", help="This point alone.")
@click.option("--fault", type=click.Choice(FAULTS), help="This fault alone.")
@click.option("--mutant", default="", help="Break the library first; see tests/crash/mutants.py.")
@click.option("--times", default=1, show_default=True, help="With --point: how often.")
def main(
    store: StoreKind,
    broker: BrokerKind,
    seed: int,
    part: str,
    named: tuple[str, ...],
    sample: int | None,
    share: tuple[int, int],
    minutes: float | None,
    side_by_side: int,
    act: Act | None,
    point: str | None,
    fault: Fault | None,
    mutant: str,
    times: int,
) -> None:
    """Run the matrix, or a case; exit code 1 when a promise was broken."""
    if not 1 <= share[0] <= share[1]:
        raise click.BadParameter(f"{share[0]} of {share[1]}: name one of the shares, the first is 1", param_hint="--share")
    side_by_side = min(side_by_side, times) if point else side_by_side
    with Ward(store, broker, side_by_side=side_by_side) as ward:
        if point is not None:
            requests = [Request(act or "consume", point, each, mutant) for each in FAULTS if fault in (None, each)] * times
            sys.exit(_tell_alone(list(ward.run(requests)), f"--store {store} --broker {broker}"))
        found = find(ward, networked=store == "postgres" or broker == "redis")
        sites = all_sites()
        cases = [
            Request(case.act, case.point, case.fault, mutant)
            for case in found.cases(seed)
            if (part == "all" or (part == "core") == sites[Point.of(case.point).site].is_core)
            and fault in (None, case.fault)
            and any(each in Point.of(case.point).site for each in named or ("",))
            and _is_in(share, case)
        ]
        # In no order, so that those that were run when somebody interrupts are a sample.
        cases = Random(seed).sample(cases, len(cases) if sample is None else min(sample, len(cases)))
        _tell_points(found, len(cases))
        reports = _run(ward, found, cases, f"--store {store} --broker {broker}", minutes)
    sys.exit(_tell_table(reports))


def _is_in(share: tuple[int, int], case: Request) -> bool:
    number, of = share
    return crc32(f"{Point.of(case.point).site} {case.fault}".encode()) % of == number - 1


def _tell_points(found: Found, cases: int) -> None:
    sites = all_sites()
    core = sum(sites[site].is_core for site in found.sites)
    in_core = sum(site.is_core for site in sites.values())
    click.echo(f"points: {len(found.sites)} awaits are come by, {core} of the core's {in_core}; {cases} cases")


def _run(ward: Ward, found: Found, cases: Sequence[Request], where: str, most_minutes: float | None) -> Sequence[Report]:
    reports: list[Report] = []
    began = time.monotonic()
    for report in run(ward, found, cases):
        reports.append(report)
        if report.violations:
            click.echo(f"\n{report.log[-_LOG_CHARACTERS:]}\n{_told(report, where)}")
        minutes = (time.monotonic() - began) / 60
        broken = sum(bool(each.violations) for each in reports)
        rate = len(reports) / max(minutes, 1e-9)
        click.echo(f"\r{len(reports)} of {len(cases)}, {broken} broken, {rate:.0f} a minute ", nl=False, err=True)
        if most_minutes is not None and minutes > most_minutes:
            break
    click.echo(f"\n{len(reports)} cases in {(time.monotonic() - began) / 60:.1f} minutes")
    click.echo("not come by:")
    for site in found.unmet():
        click.echo(f"  {site}")
    return reports


def _told(report: Report, where: str) -> str:
    request = report.request
    mutant = f" --mutant '{request.mutant}'" if request.mutant else ""
    site = all_sites().get(Point.of(request.point).site)
    lines = [f"BROKEN: {request.fault}, in act {request.act}, at {site} ({report.seconds:.1f} s)", *report.violations]
    again = f"python -m tests.crash {where} --act '{request.act}' --point '{request.point}' --fault '{request.fault}'{mutant}"
    return "\n  ".join([*lines, f"again: {again}"])


def _tell_alone(reports: Sequence[Report], where: str) -> int:
    for report in reports:
        if report.violations:
            click.echo(f"{report.log}\n{_told(report, where)}")
        else:
            happened = "happened" if report.struck else "did not happen"
            click.echo(f"{report.request.fault} {happened}: no promise broken ({report.seconds:.1f} s)")
    return int(any(report.violations for report in reports))


def _tell_table(reports: Sequence[Report]) -> int:
    """Print how many cases there were of each fault in each act."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in reports:
        fault = report.request.fault or ""
        counts[fault][report.request.act] += 1
        counts[fault]["cases"] += 1
        counts[fault]["no fault"] += not report.struck
        counts[fault]["broken"] += bool(report.violations)
    columns = [*ACTS, "cases", "no fault", "broken"]
    click.echo(" " * 14 + " ".join(f"{column:>9}" for column in columns))
    for fault in FAULTS:
        click.echo(f"{fault:14}" + " ".join(f"{counts[fault][column]:>9}" for column in columns))
    total = Counter[str]()
    for each in counts.values():
        total.update(each)
    click.echo(f"{'all':14}" + " ".join(f"{total[column]:>9}" for column in columns))
    return int(total["broken"] > 0)


if __name__ == "__main__":
    main()
