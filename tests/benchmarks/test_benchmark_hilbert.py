from math import dist

import pytest
import torch
from benchmarks.hilbert import hilbert, mean_distance
from benchmarks.registry import Options

from dilated_attention_pytorch import DilatedPattern


@pytest.mark.parametrize(("w", "r"), [(35, 1), (8, 1), (8, 3), (6, 4), (100, 2), (3, 5)])
def test_the_mean_is_over_the_pairs_that_the_pattern_offers(w, r, monkeypatch):
    monkeypatch.setattr("benchmarks.hilbert.QUERY_ROWS", 2)
    cells = torch.stack(torch.unravel_index(torch.randperm(35), (5, 7)), dim=1)
    pairs = DilatedPattern([w], [r], num_heads=r).mask(35).sum(0).nonzero().tolist()
    expected = sum(dist(cells[i].tolist(), cells[s].tolist()) for i, s in pairs) / len(pairs)
    assert mean_distance(cells, w, r) == pytest.approx(expected, rel=1e-5)


def test_the_curve_helps_where_a_segment_is_a_part_and_not_where_it_is_all():
    options = Options(
        device=torch.device("cpu"), pairs=1, cases=("100x60-256-1", "100x60-6000", "build-128x128")
    )
    distances, builds = hilbert(options)
    ratios = {row[1]: float(row[-1]) for row in distances.rows}
    assert ratios["256"] < 0.5
    assert ratios["6000"] == 1.0
    assert [row[0] for row in builds.rows] == ["128x128"]
