from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from service.cli import main
from training.comparison import compare, format_comparison, mcnemar_p_value, paired_interval


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (3, 9), (9, 3), (40, 41), (120, 200), (9000, 9300)]
)
def test_the_p_value_is_that_of_an_exact_binomial_test(first, second):
    if first + second == 0:
        assert mcnemar_p_value(first, second) == 1.0
        return
    expected = binomtest(first, first + second, 0.5).pvalue
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-6)


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares = np.array([0.80, 0.05, 0.09, 0.06])
    draws = rng.multinomial(400, shares, size=3000)
    inside = [low <= 0.04 <= high for low, high in (paired_interval(*row) for row in draws)]
    assert 0.945 <= np.mean(inside) <= 0.985


def test_the_interval_is_narrower_than_that_of_different_images():
    low, high = paired_interval(90, 2, 4, 4)
    independent = np.sqrt(0.92 * 0.08 / 100 + 0.94 * 0.06 / 100) * 1.96 * 2
    assert low < 0.02 < high
    assert high - low < independent


@pytest.mark.parametrize(
    "counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (1, 0, 0, 0)]
)
def test_the_interval_of_extremes_holds_the_difference_and_stays_possible(counts):
    low, high = paired_interval(*counts)
    difference = (counts[2] - counts[1]) / sum(counts)
    assert -1 <= low <= difference <= high <= 1


def test_the_table_counts_each_image_once():
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, True])
    found = compare(first, second)
    assert (found.both, found.first_only, found.second_only, found.neither) == (2, 1, 1, 1)
    assert found.images == 5
    assert found.difference == 0
    assert not found.is_significant


@pytest.fixture
def data_folder(tmp_path):
    from training.data import load_digits_images

    digits = load_digits_images()
    for index in range(60):
        folder = tmp_path / "data" / digits.class_names[digits.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(digits.image_bytes(index))
    return tmp_path / "data"


def run(repository, *arguments):
    command = ["compare-bundles", *arguments, "--repository", str(repository)]
    return CliRunner().invoke(main, command)


def test_a_bundle_does_not_differ_from_itself(tiny_bundle_repository, data_folder):
    done = run(
        tiny_bundle_repository,
        *("digits-linear", "digits-linear@1", "--data", str(data_folder), "--json"),
    )
    document = json.loads(done.stdout)
    assert document["difference"] == 0
    assert document["p_value"] == 1.0
    assert document["first_only"] == document["second_only"] == 0


def test_too_few_images_are_said_to_show_nothing(tiny_bundle_repository, data_folder):
    done = run(
        tiny_bundle_repository,
        *("digits-linear:hflip", "digits-linear", "--data", str(data_folder)),
    )
    assert done.exit_code == 0, done.stderr
    assert "A       digits-linear@1 hflip" in done.stdout
    assert "no difference shown on 60 images" in done.stdout


def test_the_verdict_names_the_better_one():
    better = np.arange(200) < 190
    worse = np.arange(200) < 150
    assert "big is better" in format_comparison(compare(worse, better), "small", "big")
    assert "big is better" in format_comparison(compare(better, worse), "big", "small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-linear", "nothing"], "no bundle 'nothing'"),
        (["digits-linear", "digits-linear:twice"], "the views are one of"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tiny_bundle_repository, arguments, message):
    done = run(tiny_bundle_repository, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
