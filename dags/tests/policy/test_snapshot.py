import dagster as dg

from dags.common.owners import JobOwners, owned_by
from dags.tests.policy.loaded import LOCATIONS
from dags.tests.policy.snapshot import SNAPSHOT, difference, snapshot


def test_the_snapshot_is_what_the_code_defines() -> None:
    found = difference(SNAPSHOT.read_text(), LOCATIONS)
    assert not found, f"{SNAPSHOT} differs from the code: run `make snapshot`, and commit the file.\n{found}"


def test_the_difference_shows_what_a_change_adds_changes_and_removes() -> None:
    def cranes(cron: str, *more: dg.AssetSpec) -> dict[str, dg.Definitions]:
        @dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))
        def lift_job() -> None: ...

        lift = dg.ScheduleDefinition(name="lift_schedule", job=lift_job, cron_schedule=cron)
        return {"cranes": dg.Definitions(assets=[*more], jobs=[lift_job], schedules=[lift])}

    written = snapshot(cranes("0 5 * * *"))
    assert difference(written, cranes("0 5 * * *")) == ""
    added = difference(written, cranes("0 6 * * *", dg.AssetSpec("beams")))
    for line in ("-      cron: 0 5 * * *", "+      cron: 0 6 * * *", "+    beams:"):
        assert line in added
    assert "-      owner: team-clickhouse" in difference(written, {"cranes": dg.Definitions()})


def test_the_order_of_registration_does_not_matter() -> None:
    specs = [dg.AssetSpec(name) for name in ("beams", "anchors")]
    assert snapshot({"cranes": dg.Definitions(assets=specs)}) == snapshot(
        {"cranes": dg.Definitions(assets=specs[::-1])}
    )
