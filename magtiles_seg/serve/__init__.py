"""The web service: `POST /analyze` over the same `Segmenter` as the library, and the browser demo.

`app.create_app` makes it, `magtiles-seg serve` runs it. Importing this package loads no framework.
"""
