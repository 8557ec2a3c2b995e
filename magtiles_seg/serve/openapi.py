"""The service's OpenAPI 3.1 document, and the two pages for people."""

from __future__ import annotations

from html import escape
from typing import Any

import magtiles_seg
from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.serve.replies import INCLUDES, MASKS, TILES
from magtiles_seg.serve.settings import Settings

_PROBLEMS = {
    "400": "The form, the picture or a query word is invalid",
    "406": "Neither JSON nor PNG is accepted",
    "408": "The upload came too slowly",
    "413": "The request or the picture is too large",
    "415": "No form, or a file of a format that is not taken",
    "503": "Too busy: try again after Retry-After seconds; without that header: too large",
}
_PNG_URL = {"type": "string", "pattern": "^data:image/png;base64,"}
_PIXELS = {"type": "integer", "minimum": 0}


def document(settings: Settings) -> dict[str, Any]:
    """Return the document, as JSON values.

    Args:
        settings: Decide whether a key is asked for, and how many files are taken.
    """
    paths: dict[str, Any] = {"/analyze": {"post": _analyze(settings)}}
    for path, purpose, kind in (
        ("/livez", "Whether the process is alive", "text/plain"),
        ("/metrics", "Counters for Prometheus", "text/plain"),
        ("/openapi.json", "This document", "application/json"),
        ("/docs", "This document as a page", "text/html"),
        ("/", "What this is", "text/html"),
    ):
        paths[path] = {"get": {"summary": purpose, "responses": {"200": _content("OK", kind)}}}
    paths["/readyz"] = {
        "get": {
            "summary": "Whether the model is warm and reproduces its golden tile",
            "responses": {
                "200": _content("Ready", "text/plain"),
                "503": _problem("Not ready; `detail` says why"),
            },
        }
    }
    schemas = {
        "Result": _result(),
        "Tile": _tile(),
        "Problem": _problem_schema(),
        "Defect": _defect(),
    }
    components: dict[str, Any] = {"schemas": schemas}
    if settings.api_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "magtiles-seg",
            "version": magtiles_seg.__version__,
            "summary": "Finds surface defects of magnetic tiles.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": components,
    }


def _analyze(settings: Settings) -> dict[str, Any]:
    picture: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
    if settings.max_files > 1:
        picture = {"type": "array", "items": picture, "minItems": 1, "maxItems": settings.max_files}
    form = {"type": "object", "properties": {"image": picture}, "required": ["image"]}
    one = {"$ref": "#/components/schemas/Result"}
    wrapped = {
        "type": "object",
        "properties": {
            "results": {"type": "array", "items": one},
            "tile": {"$ref": "#/components/schemas/Tile"},
        },
        "required": ["results"],
    }
    answers = {"anyOf": [one, wrapped]}
    problems = dict(_PROBLEMS)
    if settings.api_keys:
        problems["401"] = "No valid API key"
    return {
        "summary": "Find the defects of a picture",
        "description": "The mask has the picture's own size: 0 sound, 1 defect.",
        "parameters": [
            _query("include", {"type": "string", "pattern": _words_pattern()}, "Words with commas"),
            _query("mask", {"type": "string", "enum": list(MASKS)}, "Form of the mask in JSON"),
            _query("tile", {"type": "string", "enum": list(TILES)}, "The pictures show one tile"),
        ],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {
                "description": "The answer; its headers name the model",
                "headers": {"X-Model-SHA256": {"schema": {"type": "string"}}},
                "content": {
                    "application/json": {"schema": answers},
                    "image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}},
                },
            },
            **{status: _problem(text) for status, text in sorted(problems.items())},
        },
        **({"security": [{"bearer": []}, {"header": []}]} if settings.api_keys else {}),
    }


def _words_pattern() -> str:
    word = f"({'|'.join(INCLUDES)})"
    return f"^{word}(,{word})*$"


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _content(text: str, kind: str) -> dict[str, Any]:
    schema = {} if kind == "application/json" else {"type": "string"}
    return {"description": text, "content": {kind: {"schema": schema}}}


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "content": {"application/problem+json": {"schema": schema}}}


def _result() -> dict[str, Any]:
    rows = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}}
    lengths = {"type": "array", "items": _PIXELS}
    defects = {"type": "array", "items": {"$ref": "#/components/schemas/Defect"}}
    return {
        "type": "object",
        "properties": {
            "pred": {"type": "array", "items": rows, "description": "(H, W): 0 sound, 1 defect"},
            "rle": {
                "type": "object",
                "description": "COCO run lengths, down the columns, 0 first",
                "properties": {"size": lengths, "counts": lengths},
                "required": ["size", "counts"],
            },
            "verdict": {"enum": ["accept", "review", "reject"]},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "defects": defects,
            "probability": {**_PNG_URL, "description": "0 to 255 stands for 0 to 1"},
            "classes": {**_PNG_URL, "description": "Index into `labels`"},
            "labels": {"type": "array", "items": {"type": "string"}},
            "overlay": _PNG_URL,
        },
        "additionalProperties": False,
    }


def _tile() -> dict[str, Any]:
    indices = {"type": "array", "items": _PIXELS}
    return {
        "type": "object",
        "description": "With `?tile=true`: of all pictures of the request together",
        "properties": {
            "verdict": {"enum": ["accept", "review", "reject"]},
            "score": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Mean of the log odds of the pictures' scores",
            },
            "pictures": {"type": "integer", "minimum": 1},
            "overlay": {**_PNG_URL, "description": "The defects of all pictures on one of them"},
            "onto": {**_PIXELS, "description": "Which picture that is, from 0"},
            "left_out": {**indices, "description": "Pictures that could not be laid over it"},
        },
        "required": ["verdict", "score", "pictures"],
        "additionalProperties": False,
    }


def _defect() -> dict[str, Any]:
    box = {"type": "array", "items": _PIXELS, "minItems": 4, "maxItems": 4}
    point = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    size = {"type": "number", "minimum": 0}
    in_mm = {name: {"type": ["number", "null"]} for name in ("area_mm2", "length_mm", "width_mm")}
    properties: dict[str, Any] = {
        "label": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "area_px": {"type": "integer", "minimum": 1},
        "bbox_xyxy_px": box,
        "centroid_xy_px": point,
        "length_px": size,
        "width_px": size,
    }
    return {
        "type": "object",
        "properties": {**properties, **in_mm},
        "required": sorted(properties),
    }


def _problem_schema() -> dict[str, Any]:
    properties = {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    }
    return {"type": "object", "properties": properties, "required": sorted(properties)}


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
pre, code { background: #f3f3f3; border-radius: 4px; padding: .1em .3em }
pre { padding: .8em; max-height: 28rem; overflow: auto }
td code { white-space: nowrap }
label { display: inline-block; margin: 0 1rem .3rem 0 }
input, select, button { min-height: 2.4rem; max-width: 100%; box-sizing: border-box; font: inherit }
button { padding: 0 1.5rem }
#answer:empty { display: none }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top }
h2 { margin-top: 2rem }
"""


_TRY = """<h3>Try it</h3>
<form id="try"><p><label>Picture <input type="file" name="image" accept="image/*" required></label>
<p><label>include <input name="include" value="verdict,defects,overlay"></label>
<label>mask <select name="mask"><option>none<option>rle<option>pred</select></label>
KEY<p><button>Send</button></form>
<p><b id="status" role="status"></b></p>
<p><img id="overlay" alt="" hidden></p><pre id="answer"></pre>
<script>
const form = document.getElementById("try"), show = (id) => document.getElementById(id);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = new URLSearchParams({mask: form.mask.value});
  if (form.include.value) query.set("include", form.include.value);
  const body = new FormData(), headers = form.key?.value ? {"X-API-Key": form.key.value} : {};
  body.append("image", form.image.files[0]);
  show("status").textContent = "Sent ...";
  try {
    const reply = await fetch(`analyze?${query}`, {method: "POST", body, headers});
    const answer = await reply.json(), picture = show("overlay");
    picture.hidden = !answer.overlay;
    if (answer.overlay) picture.src = answer.overlay;
    show("status").textContent = `${reply.status} ${answer.verdict ?? answer.title ?? ""}`;
    const text = JSON.stringify({...answer, overlay: answer.overlay && "..."}, null, 1);
    show("answer").textContent = text.length < 20000 ? text : text.slice(0, 20000) + " ...";
  } catch (error) { show("status").textContent = `No answer: ${error.message}`; }
});
</script>"""
"""Sends a picture to this service: nothing of the page comes from elsewhere."""

_KEY = '<p><label>X-API-Key <input type="password" name="key" autocomplete="off"></label>'
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
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
    """Return the page at `/docs`: the OpenAPI document for reading, and for trying."""
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
            if path == "/analyze":
                parts.append(_TRY.replace("KEY", _KEY if "security" in operation else "", 1))
    parts.append("<h2>Result</h2>")
    schemas = document["components"]["schemas"]
    for name in ("Result", "Defect", "Tile"):
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
