"""Every error that magtiles_seg raises on purpose.

::

    MagtilesError
    ├ ConfigError(ValueError)            a parameter is unknown or invalid
    ├ DataError(ValueError)              a data set, archive or manifest is damaged or incomplete
    │ └ ImageError                      a picture cannot be read, or is none that can be segmented
    ├ ModelError                         a model file is damaged, foreign, or of another schema
    │ ├ ParityError                     an exported model does not answer as the one it came from
    │ └ StaleEngineError                an engine was built for another machine
    ├ DeliveryError                      a model was not released, or its endpoint fails the test
    └ BackendError                       the runtime under the model refused
       ├ BackendUnavailableError(ImportError)   an optional package is not installed
       └ InferenceError                  the model ran and failed, or its input does not fit

A message says what happened, what was expected, what was got, and the fix. A missing path stays a
`FileNotFoundError` and a wrong Python type a `TypeError`.
"""

from __future__ import annotations


class MagtilesError(Exception):
    """Base of every error of this package: catch it to catch them all."""


class ConfigError(MagtilesError, ValueError):
    """A parameter is unknown, of the wrong type, or out of its range."""


class DataError(MagtilesError, ValueError):
    """A data set, an archive or a split manifest is damaged or incomplete."""


class ImageError(DataError):
    """A picture cannot be read or is none that can be segmented.

    Attributes:
        reason: `"too_large"`, `"unsupported"` or `"invalid"`: over HTTP 413, 415 or 400.
    """

    def __init__(self, message: str, *, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(MagtilesError):
    """A model file is damaged, is not one of ours, or has another schema version."""


class StaleEngineError(ModelError):
    """An engine was built for another machine; `magtiles_seg.export.rebuild` builds it again."""


class ParityError(ModelError):
    """An exported model answers differently from the model it was made from."""


class DeliveryError(MagtilesError):
    """A model could not be released, or the endpoint that serves it failed its smoke test."""


class BackendError(MagtilesError):
    """The runtime under the model refused to load or to run."""


class BackendUnavailableError(BackendError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class InferenceError(BackendError):
    """The model failed while running, or its input does not fit the model."""
