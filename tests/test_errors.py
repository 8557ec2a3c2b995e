import inspect

import pytest

from magtiles_seg import errors

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES)
def test_error_of_package_is_caught_by_its_base(error: type[Exception]) -> None:
    with pytest.raises(errors.MagtilesError, match="what, expected, got, fix"):
        raise error("what, expected, got, fix")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.ImageError, ValueError),
        (errors.BackendUnavailableError, ImportError),
    ],
)
def test_error_is_also_the_builtin_that_a_caller_may_expect(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)


def test_error_tree_in_docstring_names_every_class_and_nothing_else() -> None:
    drawn = {word for word in errors.__doc__.replace("(", " ").split() if word.endswith("Error")}
    builtins = {"ValueError)", "ImportError)", "`FileNotFoundError`", "`TypeError`"}
    assert drawn - builtins == {error.__name__ for error in CLASSES}


def test_image_error_without_reason_is_invalid() -> None:
    assert errors.ImageError("x").reason == "invalid"
    assert errors.ImageError("x", reason="too_large").reason == "too_large"
