"""The page of published models is of this zoo and of these tests."""

from tests.published_page import ASKED, DIFFERS, PAGE, TESTS, zoo_table


def test_the_page_is_of_this_zoo():
    """Mistake: a kind added, a count or a schedule changed, and the page left as it was."""
    text = PAGE.read_text("utf-8")
    assert "\n".join(zoo_table()) in text and all(told in text for told in (*ASKED.values(), DIFFERS))


def test_the_page_holds_every_kind_of_parity_within_its_limits():
    """Mistake: a page written from a run in which a test was left out, or failed."""
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").split("## Parity")[1].splitlines() if line.startswith("| test_")]
    for file in TESTS:
        stem = file.rsplit("/", 1)[-1].removesuffix(".py")
        found = [row for row in rows if row[0].startswith(f"| {stem}::")]
        assert found, file
        limit = 1e-4 if file.endswith("test_pipelines.py") else 1e-5
        assert all(float(row[4]) <= limit for row in found)
    pipelines = {row[1] for row in rows if row[0].startswith("| test_pipelines::")}
    assert pipelines == {f"{name}, pixels" for name in ("sd1", "sd2", "sdxl", "ldm_text", "ldm", "sd1_inpainting")}
