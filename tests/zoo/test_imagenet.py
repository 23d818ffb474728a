import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import InputError


def test_there_are_a_thousand_different_labels_in_the_usual_order():
    labels = fs.zoo.labels()
    assert len(labels) == len(set(labels)) == 1000
    known = {
        0: "tench",
        281: "tabby",
        388: "giant panda",
        652: "military uniform",
        817: "sports car",
        999: "toilet tissue",
    }
    assert {index: labels[index] for index in known} == known
    assert all(label == label.strip() and "_" not in label and label for label in labels)


def test_labels_can_be_changed_by_the_caller_without_harm():
    fs.zoo.labels().clear()
    assert len(fs.zoo.labels()) == 1000


def test_top_k_are_the_best_with_their_softmax_probabilities():
    logits = np.full((1, 1000), -1e4, np.float32)
    logits[0, 652], logits[0, 834] = np.log(3), 0.0
    assert fs.zoo.top_k(logits, 2) == [
        (652, "military uniform", pytest.approx(0.75)),
        (834, "suit", pytest.approx(0.25)),
    ]


def test_top_k_survives_large_logits_and_orders_equal_ones_by_index():
    best = fs.zoo.top_k(np.full(1000, 1e4), 3)
    assert [index for index, _, _ in best] == [0, 1, 2]
    assert best[0][2] == pytest.approx(0.001)


def test_all_thousand_probabilities_add_up_to_one():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    best = fs.zoo.top_k(logits, 1000)
    assert sum(probability for _, _, probability in best) == pytest.approx(1, abs=1e-12)
    assert [index for index, _, _ in best] == sorted(range(1000), key=lambda i: -logits[i])


@pytest.mark.parametrize(
    ("logits", "k", "message"),
    [
        (np.zeros(999), 5, "shape .999,.; top_k takes one picture's 1000"),
        (np.zeros((2, 1000)), 5, "shape .2, 1000."),
        (np.zeros(1000), 0, "k=0; top_k takes 1 to 1000"),
        (np.zeros(1000), 1001, "k=1001"),
        (np.full(1000, np.nan), 5, "hold 1000 NaN or Inf"),
    ],
)
def test_what_top_k_cannot_rank_is_refused(logits, k, message):
    with pytest.raises(InputError, match=message):
        fs.zoo.top_k(logits, k)
