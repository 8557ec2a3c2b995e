"""The two pages for people: what this is, and what it takes. No script, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from magtiles_seg.infer.backends.base import BackendSpec

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
pre, code { background: #f3f3f3; border-radius: 4px; padding: .1em .3em }
pre { padding: .8em; overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top }
h2 { margin-top: 2rem }
"""


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def landing(spec: BackendSpec, *, demo: bool, root_path: str = "") -> str:
    """Return the page at `/`.

    Args:
        spec: Of the model.
        demo: Whether the demo is there.
        root_path: In front of every path; where it is empty, links start from where the page lies.
    """
    to = escape(f"{root_path}/") if root_path else ""
    link = f'<li><a href="{to}demo/">Try it in the browser</a></li>' if demo else ""
    card = spec.card
    return _page(
        "magtiles-seg",
        "<h1>magtiles-seg</h1><p>Finds surface defects of magnetic tiles: send a picture, get its "
        "defect mask at the picture's own size.</p>"
        "<pre>curl -F 'image=@tile.jpg' ADDRESS/analyze</pre>"
        f'<ul>{link}<li><a href="{to}docs">What it takes and answers</a> '
        f'(<a href="{to}openapi.json">OpenAPI</a>)</li>'
        f'<li><a href="{to}readyz">Ready?</a> · <a href="{to}metrics">Metrics</a></li></ul>'
        f"<p>Model {escape(card.name)} ({escape(card.architecture)}), "
        f"SHA-256 <code>{escape(spec.sha256[:12])}…</code></p>",
    )


def reference(document: dict[str, Any]) -> str:
    """Return the page at `/docs`: the OpenAPI document for reading."""
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h2>Result</h2>")
    schemas = document["components"]["schemas"]
    for name in ("Result", "Defect"):
        parts.append(f"<h3>{name}</h3>" + _table(_fields(schemas[name])))
    return _page("magtiles-seg: reference", "".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    text = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}"
    text += f". {escape(operation['description'])}</p>" if "description" in operation else "</p>"
    if "requestBody" in operation:
        text += "<pre>curl -F 'image=@tile.jpg' ADDRESS/analyze</pre>"
    wishes = [
        (f"?{entry['name']}=", f"{entry['description']}: {_words(entry['schema'])}")
        for entry in operation.get("parameters", ())
    ]
    answers = [
        (status, f"{answer['description']} ({', '.join(answer['content'])})")
        for status, answer in operation["responses"].items()
    ]
    return text + _table(wishes + answers)


def _words(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(schema["enum"])
    return str(schema["pattern"]).split(")")[0].removeprefix("^(").replace("|", ", ")


def _fields(schema: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, entry in schema["properties"].items():
        kind = entry.get("type", "one of " + ", ".join(map(str, entry.get("enum", ()))))
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        rows.append((name, f"{kind}. {entry.get('description', '')}"))
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(a)}</code></td><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"
