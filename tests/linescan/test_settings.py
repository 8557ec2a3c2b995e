from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from magtiles_seg.errors import DataError
from magtiles_seg.linescan.settings import Feature, Value, apply, is_triggered, read_features


class FakeNodes:
    """A camera that keeps what is set, with a trigger mode for each selector."""

    def __init__(self, *names: str, selectors: tuple[str, ...] = ()) -> None:
        self.values = dict.fromkeys(names, "")
        self.selectors = selectors
        self.modes = dict.fromkeys(selectors, "Off")
        self.log: list[tuple[str, str]] = []
        if selectors:
            self.values |= {"TriggerSelector": selectors[0], "TriggerMode": "Off"}

    def has(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> str:
        if name == "TriggerMode" and self.selectors:
            return self.modes[self.values["TriggerSelector"]]
        return self.values[name]

    def set(self, name: str, value: str) -> None:
        self.log.append((name, value))
        self.values[name] = value
        if name == "TriggerMode" and self.selectors:
            self.modes[self.values["TriggerSelector"]] = value

    def choices(self, name: str) -> tuple[str, ...]:
        assert name == "TriggerSelector"
        return self.selectors

    def load(self, path: Path) -> bool:
        return path.suffix == ".pfs"


def test_settings_file_is_read_in_all_its_forms(tmp_path: Path) -> None:
    file = tmp_path / "camera.txt"
    file.write_text(
        "# {05D8C294-F295-4dfb-9D01-096BD04049F4}\n\n"
        "Width\t2048\n"
        "TriggerMode\t{TriggerSelector=LineStart}\tOn\n"
        "ExposureTime = 20.5\n"
        "ImageFilename\tGENICAM_EMPTY_STRING\n"
        "DeviceUserID=line 3 = left\n"
    )
    assert read_features(file) == [
        Feature("Width", "2048"),
        Feature("TriggerMode", "On", (("TriggerSelector", "LineStart"),)),
        Feature("ExposureTime", "20.5"),
        Feature("ImageFilename", ""),
        Feature("DeviceUserID", "line 3 = left"),
    ]


@pytest.mark.parametrize("line", ["Width", "Width=", "=3", "Pixel Format=Mono8", "a\tb\tc"])
def test_line_that_is_no_setting_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "camera.txt"
    file.write_text(f"Height=4\n{line}\n")
    with pytest.raises(DataError, match=r"camera\.txt, line 2: .* expected Name=Value"):
        read_features(file)


def test_file_that_is_no_text_is_data_error(tmp_path: Path) -> None:
    file = tmp_path / "camera.pfs"
    file.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match="is no text"):
        read_features(file)


@pytest.mark.parametrize(
    ("names", "features", "expected"),
    [
        (("Width", "Height"), {"width": 9, "Height": 4}, [("Width", "9"), ("Height", "4")]),
        (("ExposureTimeAbs",), {"exposure-us": 20.5}, [("ExposureTimeAbs", "20.5")]),
        (
            ("AcquisitionLineRate", "AcquisitionLineRateEnable"),
            {"line-rate": 20000},
            [("AcquisitionLineRateEnable", "1"), ("AcquisitionLineRate", "20000")],
        ),
        (("ReverseX",), {"ReverseX": True}, [("ReverseX", "1")]),
        (
            ("TriggerSource", "TriggerMode"),
            {"trigger": "Line1"},
            [("TriggerSource", "Line1"), ("TriggerMode", "On")],
        ),
        (("TriggerMode",), {"trigger": "off"}, [("TriggerMode", "Off")]),
    ],
)
def test_plain_names_mean_what_the_camera_has(
    names: tuple[str, ...], features: Mapping[str, Value], expected: list[tuple[str, str]]
) -> None:
    nodes = FakeNodes(*names)
    apply(nodes, None, features)
    assert nodes.log == expected


def test_trigger_is_that_of_a_line_where_there_is_one() -> None:
    nodes = FakeNodes("TriggerSource", selectors=("FrameStart", "LineStart"))
    assert not is_triggered(nodes)
    apply(nodes, None, {"trigger": "Line1"})
    assert nodes.modes == {"FrameStart": "Off", "LineStart": "On"}
    nodes.values["TriggerSelector"] = "FrameStart"
    assert is_triggered(nodes)
    assert nodes.values["TriggerSelector"] == "FrameStart"  # as it was


def test_vendors_loader_goes_before_ours(tmp_path: Path) -> None:
    for name, expected in (("a.pfs", []), ("a.txt", [("Width", "3")])):
        (tmp_path / name).write_text("Width=3\n")
        nodes = FakeNodes("Width")
        apply(nodes, tmp_path / name, {})
        assert nodes.log == expected


def test_feature_that_the_camera_has_not_is_data_error() -> None:
    with pytest.raises(DataError, match="no feature Gain"):
        apply(FakeNodes("Width"), None, {"Gain": 3})
    with pytest.raises(DataError, match="no feature ExposureTime or ExposureTimeAbs"):
        apply(FakeNodes("Width"), None, {"exposure-us": 3})
