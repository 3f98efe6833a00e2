from dags.common.markdown import code, markdown_table


def test_rows_stand_below_their_head_with_numbers_to_the_right() -> None:
    assert markdown_table(["path", "views"], "lr", [["`/`", 3], ["`/a`", 1]]) == (
        "| path | views |\n|---|---:|\n| `/` | 3 |\n| `/a` | 1 |"
    )


def test_no_rows_are_no_table() -> None:
    assert markdown_table(["path"], "l", []) == ""


def test_what_a_stranger_wrote_ends_neither_the_cell_nor_the_line() -> None:
    assert code("/a|b`c\nd") == "`/a\\|b'c\N{REPLACEMENT CHARACTER}d`"
    assert code("") == ""
