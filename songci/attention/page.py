"""bertviz's interactive views, made to work without a network, and the page that holds them with still pictures."""

import base64
import html
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from songci.attention.stats import Reading
from songci.cli import UserError

LIBRARIES = (("xstatic.pkg.jquery", "data/jquery.min.js"), ("mpld3", "js/d3.v5.min.js"))
AS_HTML = {"prettify_tokens": False, "html_action": "return"}  # for bertviz
DIGITS = 4  # of a weight: finer than the eye can see, and a quarter of the bytes
MANY_LINES = 150_000  # in a model view: with more, a browser takes too long
FONTS = "'Noto Sans CJK SC','Noto Sans SC','PingFang SC','Microsoft YaHei','WenQuanYi Zen Hei',sans-serif"

# bertviz asks require.js for jQuery and d3, which the page has loaded already. And it draws the tokens as they are:
# readable() finds the characters that this browser has no font for, since they look like a noncharacter (U+FFFF), and
# shows their code points instead.
GLUE = """
var require = {config() {}};
function requirejs(names, callback) { callback(window.jQuery, window.d3); }
function picture(text) {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  context.canvas.width = context.canvas.height = 32;
  context.font = "20px " + FONTS;
  context.fillText(text, 4, 24);
  return context.getImageData(0, 0, 32, 32).data.join();
}
function readable(params) {
  const none = [picture("\\uffff"), picture("\\u{10fffe}"), picture("")];
  const name = (char) => "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const show = (token) => Array.from(token, (char) => none.includes(picture(char)) ? name(char) : char).join("");
  for (const part of params.attention) {
    part.left_text = part.left_text.map((token) => token.length > 2 ? token : show(token));
    part.right_text = part.left_text;
  }
  return params;
}
"""


@dataclass(frozen=True, repr=False)
class View:
    """An interactive view, which a notebook displays: a whole HTML page that needs nothing from outside."""

    document: str
    height: int  # in pixels
    name: str
    note: str = ""

    def _repr_html_(self) -> str:
        """The document inside an <iframe>, which keeps its scripts apart from those of the page or notebook."""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        style = f"width:100%;height:{self.height}px;border:0;background:white"
        document, name = html.escape(self.document), html.escape(self.name)
        return f'<div>{note}<iframe title="{name}" style="{style}" srcdoc="{document}"></iframe></div>'

    frame = _repr_html_

    def __repr__(self) -> str:
        return f"<{self.name}: run this cell to see it>"


def head_view(reading: Reading, layer: int = 0, heads: list[int] | None = None) -> View:
    """bertviz's head view, which begins with the given layer and heads (None: all).

    Raises UserError for a layer or a head that the model lacks, which bertviz would not notice.
    """
    from bertviz import head_view as bertviz_view

    reading.check([layer], heads)
    shown = bertviz_view(reading.weights, reading.tokens, layer=layer, heads=heads, **AS_HTML)
    height = 90 + int(22.5 * len(reading.tokens))  # bertviz's height of a row
    return View(offline(shown.data), height, f"head view of {reading}", reading.note)


def model_view(reading: Reading, include_layers: list[int] | None = None) -> View:
    """bertviz's model view: all layers (or those given) and heads at a glance; a click on one enlarges it.

    Raises UserError for a layer that the model lacks.
    """
    from bertviz import model_view as bertviz_view

    reading.check(include_layers or [])
    layers = include_layers or None
    shown = bertviz_view(reading.weights, reading.tokens, include_layers=layers, display_mode="light", **AS_HTML)
    # bertviz stretches the heads over its whole width: as if there were 12, a few heads do not become huge
    rows, length, total = len(layers or reading.weights), len(reading.tokens), max(12, reading.num_heads)
    height = 60 + max(rows * (10 + 84 * length // total), 55 + 18 * length)
    return View(offline(shown.data, total_heads=total), height, f"model view of {reading}", reading.note)


def offline(page: str, **changes) -> str:
    """bertviz's HTML as a document that asks nothing of the network; changes: to the parameters of its script.

    It holds the libraries, jQuery and d3, instead of links to them, and the data once instead of twice, with rounded
    weights. No token can end the script that holds it. Raises UserError if a library is not installed.
    """
    page = re.sub(r"\A\s*<script src=[^>]*></script>", "", page)  # require.js
    start = re.search("const params = ", page).end()
    params, end = json.JSONDecoder().raw_decode(page, start)
    params.update(changes)
    for part in params["attention"]:
        part["attn"] = _rounded(part["attn"])
    # What follows on this line is a comment with the same data again
    data = _script_safe(json.dumps(params, separators=(",", ":")))
    page = f"{page[:start]}readable({data});{page[page.index(chr(10), end) :]}"
    glue = GLUE.replace("FONTS", json.dumps(FONTS))
    scripts = "".join(f"<script>{_script_safe(code)}</script>\n" for code in (*map(_library, LIBRARIES), glue))
    style = f"<style>body{{margin:0}} svg text{{font-family:{FONTS}}}</style>"
    head = f'<head><meta charset="utf-8">{style}\n{scripts}</head>'
    return f'<!DOCTYPE html>\n<html lang="zh-Hans">{head}\n<body>{page}</body></html>'


def _rounded(weights):
    if isinstance(weights, list):
        return [_rounded(part) for part in weights]
    return round(weights, DIGITS) or 0  # 0 rather than 0.0: half of the weights are zero


def _script_safe(code: str) -> str:
    """The code with nothing in it that HTML would take for the end of the script or for a comment."""
    return re.sub(r"<(?=/script|!--)", r"\\u003c", code, flags=re.IGNORECASE)


def _library(place: tuple[str, str]) -> str:
    """A JavaScript library from an installed Python package, without importing the package."""
    package, file = place
    try:
        [folder] = importlib.util.find_spec(package).submodule_search_locations
        return (Path(folder) / file).read_text(encoding="utf-8")
    except (ImportError, AttributeError, ValueError, OSError):
        raise UserError(f"{file} of the package {package} is missing: pip install -r requirements.txt") from None


# Two lines of explanation for each view and picture, which stand in the page and in the cells of attnvis.ipynb.
EXPLAINED = {
    "Head view 注意力连线": (
        "Hover over a character on the left: lines lead to the characters it looks at, darker for more weight.",
        "Each colour is a head (注意力头): click on its square to hide it. Choose the layer (层) in the list.",
    ),
    "Model view 所有层与头": (
        "All layers (rows) and heads (columns) at a glance; click on one to enlarge it.",
        "Where many lines meet, many characters look at the same one: often the title or a full stop.",
    ),
    "Heatmaps 热力图": (
        "The same weights, a matrix for each head: row i shows how character i divides a total weight of 1.",
        "The upper triangle is empty because the mask (掩码) lets no character look at a later one.",
    ),
    "Top five predictions 下一个字的前五名": (
        "What the model would write next at each position, and how likely; a frame marks the character that follows.",
        "The form (the name of the tune, punctuation) is often nearly certain; the words are not.",
    ),
    "Loss per character 每个字的损失": (
        "-ln p of each character given those before it: pale if it was expected, dark if it was a surprise.",
        "The mean is the cross entropy (交叉熵) that training lowers. The first character has no loss.",
    ),
    "What each head does 每个头的统计量": (
        "Entropy (熵): one character or many? Distance: how far back? Then the weight on the previous character, and "
        "on the character at the same place in the previous clause (句).",
        '"Uniform" is a head that looks at all characters equally: the difference from it is what was learned.',
    ),
    "A head switched off 关掉一个头": (
        "How much the loss on validation text rises when the output of one head is set to zero: red heads are missed.",
        "A head with a striking pattern may still matter little, because other heads can do its work.",
    ),
    "Logit lens 逐层预测": (
        "What the model would predict if it ended at a layer: the last LayerNorm and the output layer, applied early.",
        'The output layer shares its weights with the embeddings, so the row "embeddings" mostly repeats the text.',
    ),
}


def offline_page(reading: Reading, pictures: dict[str, list[bytes]]) -> str:
    """One self-contained HTML page: the two views, and the PNGs of `pictures`, by their titles in EXPLAINED."""
    head, model, *_ = EXPLAINED
    shown = {head: head_view(reading).frame()}
    if sum(weights.numel() for weights in reading.weights) <= MANY_LINES:
        shown[model] = model_view(reading).frame()
    else:
        shown[model] = "<p>Too many lines for one page: choose layers with include_layers in attnvis.ipynb.</p>"
    for title, pngs in pictures.items():
        urls = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pngs]
        shown[title] = "\n".join(f'<img alt="{html.escape(title)}" src="{url}">' for url in urls)
    sections = "\n".join(
        f"<h2>{title}</h2>\n<p>{'<br>'.join(map(html.escape, EXPLAINED[title]))}</p>\n{content}"
        for title, content in shown.items()
    )
    style = f"body{{font-family:{FONTS};max-width:1250px;margin:2em auto;padding:0 1em}} img{{max-width:100%}}"
    name = html.escape(str(reading))
    return (
        f'<!DOCTYPE html>\n<html lang="zh-Hans"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{style}</style></head>\n<body><h1>Where does the model look? 注意力可视化</h1>\n"
        f"<p>{name}</p>\n<pre>{html.escape(reading.text)}</pre>\n{sections}</body></html>\n"
    )
