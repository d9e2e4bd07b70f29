"""Settings: what is refused, and in which words."""

import pytest

from q4run.cache.keys_values import KV_TYPES
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.settings import Settings, kv_kinds


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"kv_type": "f8"}, "there is no KV type 'f8'; choose f16 or f32 or q8_0"),
        ({"cache": "mru"}, "there is no cache policy 'mru'; choose "),
        ({"prefetch": "some"}, "there is no prefetch 'some'; choose auto or always or never"),
        ({"io": "floppy"}, "there is no I/O method 'floppy'; choose auto, "),
        ({"context": 0}, "a context of 0 tokens holds nothing: give at least 1"),
        ({"ram_budget": "much"}, "'much' is not a size"),
        ({"ram_budget": 0}, "a RAM budget of 0 bytes is nothing: give at least 1M"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, said):
    with pytest.raises(Error) as refused:
        Settings(**setting)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("given", "n_bytes"),
    [(None, None), (5, 5), ("2k", 2000), ("50%", total_memory() // 2)],
)
def test_the_budget_in_bytes(given, n_bytes):
    assert Settings(ram_budget=given).budget_bytes == n_bytes


def test_the_kinds_of_keys_and_values_are_those_of_the_cache():
    assert kv_kinds() == list(KV_TYPES)
