"""Which type a matrix gets whose rows are not whole blocks of the one asked for."""

import pytest

from q4run.convert import recipe


@pytest.mark.parametrize(
    ("wanted", "fallback"),
    [
        ("q6_k", "q8_0"),
        ("q5_k", "q5_1"),
        ("q4_k", "q5_0"),
        ("q3_k", "iq4_nl"),
        ("q2_k", "iq4_nl"),
        ("iq4_xs", "iq4_nl"),
        ("tq2_0", "q4_0"),
        ("tq1_0", "q4_0"),
    ],
)
def test_rows_of_other_lengths_fall_back_as_in_llama_cpp(wanted, fallback):
    assert recipe._first_that_fits(wanted, 512).name == wanted
    assert recipe._first_that_fits(wanted, 96).name == fallback
    assert recipe._first_that_fits(wanted, 100).name == "f16"


def test_every_fallback_can_be_written():
    assert {name for names in recipe.FALLBACKS.values() for name in names} <= set(recipe.FILE_TYPES)
