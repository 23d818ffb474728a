"""From SSD-VGG's outputs to objects."""

import math

import numpy as np
import PIL.Image
import pytest

import fpgasim as fs
from fpgasim.errors import InputError
from fpgasim.zoo import boxes

CAR, DOG, PERSON = 7, 12, 15
#: Where the anchors of each output begin.
STARTS = np.cumsum([0, 37 * 37 * 4, 19 * 19 * 6, 10 * 10 * 6, 5 * 5 * 6, 3 * 3 * 4]).tolist()


def nothing():
    """Outputs that find nothing: background everywhere, boxes at their anchors; (8432, 21) and (8432, 4)."""
    logits = np.zeros((8432, 21), np.float32)
    logits[:, 0] = 30
    return logits, np.zeros((8432, 4), np.float32)


def outputs_of(logits, offsets):
    """The twelve outputs, (1, cells, cells, boxes, values)."""
    split = [*np.split(logits, STARTS[1:]), *np.split(offsets, STARTS[1:])]
    return [a.reshape(1, *shape) for a, shape in zip(split, boxes.output_shapes(), strict=True)]


def found(marks, offsets=None, **thresholds):
    """What is detected with these (anchor, class, probability), as [(class, probability, box)]."""
    logits, default = nothing()
    for anchor, index, probability in marks:
        logits[anchor, 0] = 0
        logits[anchor, 1:] = -30
        logits[anchor, index] = math.log(probability / (1 - probability))
    detections = fs.zoo.detect(outputs_of(logits, default if offsets is None else offsets), **thresholds)
    return list(zip(*detections, strict=True))


def test_there_are_8432_anchors_in_the_order_of_the_outputs():
    anchors = boxes.anchors()
    assert anchors.shape == (8432, 4)
    assert anchors.dtype == np.float32
    assert [math.prod(shape[:3]) for shape in boxes.output_shapes()] == [5476, 2166, 600, 150, 36, 4] * 2
    assert len(boxes.anchors(38)) == 8732  # the paper's


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        # 37x37, step 8: the first cell's centre is at pixel 4
        (0, [4, 4, 21, 21]),
        (1, [4, 4, math.sqrt(21 * 45), math.sqrt(21 * 45)]),
        (2, [4, 4, 21 / math.sqrt(2), 21 * math.sqrt(2)]),
        (3, [4, 4, 21 * math.sqrt(2), 21 / math.sqrt(2)]),
        # its second row, third column
        ((37 + 2) * 4, [12, 20, 21, 21]),
        # 19x19, step 16, last cell: ratios 3 and 1/3
        (STARTS[2] - 2, [296, 296, 45 / math.sqrt(3), 45 * math.sqrt(3)]),
        (STARTS[2] - 1, [296, 296, 45 * math.sqrt(3), 45 / math.sqrt(3)]),
        # 10x10, 5x5 and 3x3, first cells
        (STARTS[2], [16, 16, 99, 99]),
        (STARTS[3] + 1, [32, 32, math.sqrt(153 * 207), math.sqrt(153 * 207)]),
        (STARTS[4], [50, 50, 207, 207]),
        # 1x1
        (8431, [150, 150, 261 * math.sqrt(2), 261 / math.sqrt(2)]),
    ],
)
def test_anchors_are_those_computed_by_hand(index, expected):
    """Centre and size in pixels of the 300x300 input."""
    np.testing.assert_allclose(boxes.anchors()[index] * 300, expected, rtol=1e-6)


def test_a_box_at_its_anchor_is_the_anchor():
    [(index, score, box)] = found([(STARTS[4], DOG, 0.9)])
    assert index == DOG
    assert boxes.labels()[index] == "dog"
    assert score == pytest.approx(0.9, rel=1e-6)
    # centre 50, side 207: the corner at -53.5 is clipped
    np.testing.assert_allclose(box * 300, [0, 0, 153.5, 153.5], rtol=1e-5)


def test_offsets_move_by_a_tenth_of_the_anchor_and_scale_by_the_exponential_of_a_fifth():
    offsets = nothing()[1]
    anchor = STARTS[3] - 300 + 20  # 10x10
    offsets[anchor] = [1, -2, 0.5, -1.5]
    y, x, height, width = boxes.anchors()[anchor].astype(float)
    x, y = x + 0.1 * 1 * width, y + 0.1 * -2 * height
    width, height = width * math.exp(0.2 * 0.5), height * math.exp(0.2 * -1.5)
    [(_, _, box)] = found([(anchor, CAR, 0.8)], offsets)
    expected = np.clip([y - height / 2, x - width / 2, y + height / 2, x + width / 2], 0, 1)
    np.testing.assert_allclose(box, expected, rtol=1e-5)


def test_the_select_threshold_is_obeyed():
    marks = [(0, DOG, 0.3), (400, CAR, 0.6), (800, PERSON, 0.95)]
    for threshold, count in ((0.1, 3), (0.3001, 2), (0.5, 2), (0.9, 1), (0.96, 0), (1, 0)):
        assert len(found(marks, select_threshold=threshold)) == count
    assert [index for index, _, _ in found(marks, select_threshold=0.1)] == [PERSON, CAR, DOG]


def test_the_nms_threshold_is_obeyed_within_a_class():
    """Anchors 0 and 1 of a cell are squares of sides a and b around one centre: they overlap by a²/b²."""
    offsets = nothing()[1]
    first = (18 * 37 + 18) * 4  # in the middle, so that nothing is clipped
    overlap = 21 / 45
    marks = [(first, DOG, 0.8), (first + 1, DOG, 0.9)]
    assert len(found(marks, offsets, nms_threshold=overlap + 0.01)) == 2
    [(index, score, _)] = found(marks, offsets, nms_threshold=overlap - 0.01)
    assert (index, score) == (DOG, pytest.approx(0.9, rel=1e-6))
    assert len(found([(first, CAR, 0.8), (first + 1, DOG, 0.9)], offsets, nms_threshold=0.1)) == 2


def test_a_box_that_was_dropped_drops_no_other():
    """Of three squares in a row the middle one overlaps both others, which do not overlap each other."""
    offsets = nothing()[1]
    first = (18 * 37 + 15) * 4
    anchors = [first, first + 4, first + 8]  # 8 pixels apart, sides of 21: overlaps 13/29 and 5/37
    marks = list(zip(anchors, [DOG] * 3, [0.9, 0.8, 0.7], strict=True))
    assert [round(float(score), 3) for _, score, _ in found(marks, offsets, nms_threshold=0.4)] == [0.9, 0.7]


def test_boxes_outside_the_picture_are_left_out_and_huge_ones_clipped():
    offsets = nothing()[1]
    offsets[0] = [-1000, 0, 0, 0]
    offsets[4] = [0, 0, 3e38, 600]
    [(_, _, box)] = found([(0, DOG, 0.9), (4, CAR, 0.9)], offsets)
    np.testing.assert_array_equal(box, [0, 0, 1, 1])


def slow_detect(outputs, select_threshold, nms_threshold):
    """The definition, one box at a time in double precision."""
    candidates, position = [], 0
    anchors = boxes.anchors().astype(float)
    for grid in range(6):
        logits = outputs[grid].reshape(-1, 21).astype(float)
        offsets = outputs[6 + grid].reshape(-1, 4).astype(float)
        for row, (dx, dy, dw, dh) in zip(logits, offsets, strict=True):
            y, x, height, width = anchors[position]
            position += 1
            powers = [math.exp(value - max(row)) for value in row]
            x, y = x + 0.1 * dx * width, y + 0.1 * dy * height
            width, height = width * math.exp(0.2 * dw), height * math.exp(0.2 * dh)
            box = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
            box = [min(max(corner, 0), 1) for corner in box]
            for index in range(1, 21):
                if powers[index] / sum(powers) > select_threshold and box[2] > box[0] and box[3] > box[1]:
                    candidates.append((powers[index] / sum(powers), index, box))
    kept = []
    for score, index, box in sorted(candidates, key=lambda c: -c[0])[:400]:
        rivals = (other for _, i, other in kept if i == index)
        if all(intersection_over_union(box, other) < nms_threshold for other in rivals):
            kept.append((score, index, box))
    return kept


def intersection_over_union(a, b):
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return height * width / (area - height * width)


@pytest.mark.parametrize(("scale", "select", "nms"), [(1.6, 0.5, 0.45), (2.4, 0.3, 0.2), (3, 0.05, 0.6)])
def test_random_outputs_give_what_the_slow_loop_gives(scale, select, nms):
    """At the last scale there are far more than 400 candidates; the seed leaves no scores equal in single precision."""
    rng = np.random.default_rng(5)
    outputs = outputs_of(
        (rng.standard_normal((8432, 21)) * scale).astype(np.float32), rng.standard_normal((8432, 4)).astype(np.float32)
    )
    slow = slow_detect(outputs, select, nms)
    got = fs.zoo.detect(outputs, select, nms)
    assert len(slow) > 20
    assert got.classes.tolist() == [index for _, index, _ in slow]
    np.testing.assert_allclose(got.scores, [score for score, _, _ in slow], rtol=1e-5)
    np.testing.assert_allclose(got.boxes, [box for _, _, box in slow], atol=1e-5)


def test_outputs_are_told_by_their_shapes_whatever_their_order_names_and_batch_axis():
    rng = np.random.default_rng(4)
    logits, offsets = (rng.standard_normal((8432, n)).astype(np.float32) * 2 for n in (21, 4))
    outputs = outputs_of(logits, offsets)
    expected = fs.zoo.detect(outputs)
    assert len(expected.classes) > 20
    for same in ([a[0] for a in outputs], outputs[::-1], {str(i): a for i, a in enumerate(outputs[6:] + outputs[:6])}):
        for got, want in zip(fs.zoo.detect(same), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_the_papers_finest_grid_is_known_too():
    outputs = [np.zeros(shape, np.float32) for shape in boxes.output_shapes(38)]
    outputs[0][37, 37, 0, PERSON] = 9
    [box] = fs.zoo.detect(outputs).boxes
    np.testing.assert_allclose(box * 300, [289.5, 289.5, 300, 300], rtol=1e-6)


def test_nothing_found_is_three_empty_arrays():
    classes, scores, found_boxes = fs.zoo.detect(outputs_of(*nothing()))
    assert (classes.shape, scores.shape, found_boxes.shape) == ((0,), (0,), (0, 4))


@pytest.mark.parametrize("name", ["select_threshold", "nms_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_thresholds_outside_0_to_1_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}={value}; must be from 0 to 1"):
        fs.zoo.detect(outputs_of(*nothing()), **{name: value})


def test_outputs_that_are_not_ssd_vggs_are_refused():
    outputs = outputs_of(*nothing())
    with pytest.raises(
        InputError, match=r"11 outputs, of shapes \(37, 37, 4, 21\).* SSD-VGG-300 has \(37, 37, 4, 21\)"
    ):
        fs.zoo.detect(outputs[:11])
    with pytest.raises(InputError, match="13 outputs"):
        fs.zoo.detect([*outputs, outputs[0]])
    with pytest.raises(InputError, match=r"shape \(2, 37, 37, 4, 21\); detect takes one picture"):
        fs.zoo.detect([np.concatenate([a, a]) for a in outputs])
    outputs[3][0, 1, 2, 3, 4] = np.nan
    with pytest.raises(InputError, match="not finite"):
        fs.zoo.detect(outputs)


def test_boxes_are_drawn_where_they_are():
    detections = fs.zoo.Detections(np.array([DOG]), np.array([0.75], np.float32), np.array([[0.5, 0.25, 1, 0.75]]))
    picture = PIL.Image.new("RGB", (401, 201), (9, 9, 9))
    drawn = np.asarray(fs.zoo.draw_boxes(picture, detections))
    assert drawn.shape == (201, 401, 3)
    assert np.asarray(picture).max() == 9
    changed = (drawn != 9).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (100, 200, 100, 300)
    assert not changed[150, 110:290].any()
    assert changed[150, 100]
    assert changed[150, 300]


def test_drawing_leaves_no_trace_of_nothing():
    picture = PIL.Image.new("RGB", (20, 10), (9, 9, 9))
    drawn = fs.zoo.draw_boxes(picture, fs.zoo.detect(outputs_of(*nothing())))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture))
