"""docs/models.md is what the tables in the code say."""

from inner_guidance.tools.model_table import PAGE, page


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make models`"
