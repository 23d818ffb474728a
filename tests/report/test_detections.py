"""The boxes of two sides, paired."""

import numpy as np

from fpgasim.report.detections import agreement, found_table, pair
from fpgasim.zoo import Detections

DOG, CAR = 12, 7


def detections(*rows):
    classes, scores, boxes = zip(*rows, strict=True) if rows else ((), (), np.empty((0, 4)))
    return Detections(np.array(classes, int), np.array(scores, np.float32), np.array(boxes, np.float32))


def test_a_box_is_paired_with_the_nearest_of_its_class():
    fp32 = detections((DOG, 0.9, [0, 0, 1, 0.5]), (DOG, 0.8, [0, 0.5, 1, 1]))
    got = detections((DOG, 0.7, [0, 0.5, 1, 0.875]), (DOG, 0.6, [0, 0, 1, 0.5]))
    left, right = pair(fp32, got)
    assert (left.label, left.fp32_score, left.score, left.overlap) == ("dog", np.float32(0.9), np.float32(0.6), 1)
    assert (right.score, right.overlap, right.box) == (np.float32(0.7), 0.75, (0, 0.5, 1, 0.875))
    assert (
        agreement([left, right], 0.5) == "2 objects in fp32 and 2 on the FPGA are likelier than 0.5; found by both: 2"
    )


def test_boxes_of_other_classes_or_elsewhere_are_not_paired():
    fp32 = detections((DOG, 0.9, [0, 0, 1, 0.5]), (CAR, 0.8, [0, 0, 0.5, 0.5]))
    got = detections((CAR, 0.9, [0, 0, 1, 0.5]), (CAR, 0.7, [0.4, 0.4, 1, 1]))
    found = pair(fp32, got)
    assert [(f.label, f.fp32_score is None, f.score is None, f.overlap) for f in found] == [
        ("dog", False, True, None),
        ("car", False, False, 0.5),
        ("car", True, False, None),
    ]
    assert agreement(found, 0.25) == "2 objects in fp32 and 2 on the FPGA are likelier than 0.25; found by both: 1"


def test_nothing_found_is_said():
    assert pair(detections(), detections()) == []
    assert len(pair(detections(), detections((DOG, 0.9, [0, 0, 1, 1])))) == 1
    assert agreement([], 0.5) == "no object is likelier than 0.5, neither in fp32 nor on the FPGA"


def test_of_many_objects_the_first_are_shown():
    corners = [[0.04 * i, 0, 0.04 * i + 0.03, 1] for i in range(25)]
    found = pair(detections(*((DOG, 0.9 - 0.01 * i, corner) for i, corner in enumerate(corners))), detections())
    assert found_table(found, (10, 10), "msfp12").row_count == 20
    assert agreement(found, 0.5).endswith("found by both: 0; the first 20 are shown")
