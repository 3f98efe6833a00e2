from dags.common.markdown import code, markdown_table


def test_a_table_has_a_head_and_numbers_aligned_to_the_right() -> None:
    assert markdown_table(["path", "views"], "lr", [["`/`", 3], ["`/a`", 1]]) == (
        "| path | views |\n|---|---:|\n| `/` | 3 |\n| `/a` | 1 |"
    )


def test_a_table_without_rows_is_empty() -> None:
    assert markdown_table(["path"], "l", []) == ""


def test_text_from_outside_ends_neither_the_cell_nor_the_line() -> None:
    assert code("/a|b`c\nd") == "`/a\\|b'c\N{REPLACEMENT CHARACTER}d`"
    assert code("") == ""
