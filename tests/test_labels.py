from magtiles_seg import labels


def test_labels_start_with_background_and_are_distinct() -> None:
    assert labels.LABELS[0] == labels.BACKGROUND
    assert len(set(labels.LABELS)) == len(labels.LABELS) == 6
    assert labels.FREE not in labels.LABELS


def test_color_of_background_is_black() -> None:
    assert labels.color_rgb(0) == (0, 0, 0)


def test_colors_of_the_labels_are_distinct() -> None:
    colors = {labels.color_rgb(index) for index in range(len(labels.LABELS))}
    assert len(colors) == len(labels.LABELS)


def test_color_past_the_palette_repeats_but_is_never_background() -> None:
    colors = [labels.color_rgb(index) for index in range(1, 256)]
    assert (0, 0, 0) not in colors
    assert colors[0] == colors[9] == colors[18]
