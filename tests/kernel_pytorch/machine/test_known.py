from __future__ import annotations

import pytest

from kernel_pytorch.machine.known import total


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2], 3), ([1.5], 1.5), ([0, 0], 0), ([1, None], None), ([None], None), ([], None)],
)
def test_a_total_is_known_if_all_its_parts_are(values, expected):
    assert total(values) == expected
    assert total(iter(values)) == expected
