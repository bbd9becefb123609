"""What lies on the page before a reader, and what the components of the page call."""

import base64
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from songci.cli import UserError
from songci.forms.poems import BLANK, is_character, tune_of
from songci.forms.prompt import as_in_corpus
from songci.forms.render import drawn, outline
from songci.forms.rules import FormRules
from songci.forms.templates import Forms
from songci.page import poem
from songci.page.words import CLICK, SAID
from songci.runs import BEST, Trained, as_gpt, load_trained
from songci.writing.alternatives import candidate_posterior, rest_of_sentence
from songci.writing.decoder import Decoder
from songci.writing.generation import Text
from songci.writing.samples import Request, Sample, samples
from songci.writing.smc import PARTICLES


@dataclass(frozen=True)
class Desk:
    """What lies before one reader. poem: the text under work; at: the place of the character that was clicked."""

    poem: str = ""
    at: int | None = None
    past: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    def changed(self, text: str, at: int | None = None) -> "Desk":
        return replace(self, poem=text, at=at, past=(*self.past, self.poem))


def language(request: gr.Request) -> int:
    """The place in WORDS and SAID: 1 for a browser that prefers Chinese."""
    return int(request.headers.get("accept-language", "").lower().startswith("zh"))


def on_page(function: Callable) -> Callable:
    """The function, with a user's error as a sentence on the page."""

    @wraps(function)
    def told(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return told


@lru_cache(maxsize=4)
def _opened(ckpt_path: str, data_root: str, changed: float) -> Trained:
    return load_trained(ckpt_path, data_root)


class Page:
    """What the page does with a data folder and the runs of its models; what the components call returns outputs."""

    def __init__(self, data_root: str, runs: list[str]):
        self.data_root, self.runs, self.forms = data_root, runs, Forms.load(data_root)
        self.files = tempfile.mkdtemp(prefix="songci-")

    @on_page
    def opened(self, ckpt_path: str) -> Trained:
        """The model of a run, read again when training has found a better one."""
        best = Path(ckpt_path) / BEST
        return _opened(ckpt_path, self.data_root, best.stat().st_mtime if best.exists() else 0.0)

    @on_page
    def written(
        self, ckpt_path, start, template, rhyme="", acrostic="", seed=None, particles=PARTICLES, **more
    ) -> Sample:
        """One poem that goes on with a text and fills its blanks."""
        trained, seed = self.opened(ckpt_path), random.randrange(2**31) if seed is None else seed
        start, rhyme, acrostic = (as_in_corpus(text.strip(), trained.vocabulary) for text in (start, rhyme, acrostic))
        rules = FormRules(self.forms, trained.vocabulary, acrostic, rhyme, template)
        return next(samples(trained, Request(start, rules=rules, seed=seed, particles=particles, **more)))

    def again(self, ckpt_path: str, start: str, text: str, **more) -> Sample:
        """As written(), in the form of a text."""
        result = poem.checked(text, self.forms)
        return self.written(ckpt_path, start, result.number if result.form else 0, **more)

    @on_page
    def others(self, ckpt_path: str, text: str, at: int) -> list[tuple[str, float]]:
        """What could stand in a place of a whole poem in form, likeliest first, and its probability by what is around.

        The ten likeliest, and what stands there.
        """
        trained = self.opened(ckpt_path)
        rules = FormRules(self.forms, trained.vocabulary, template=poem.checked(text, self.forms).number)
        before, encode = Text(trained, poem.with_chars(text, [at]), 1, rules=rules), trained.vocabulary.encode
        [token], allowed = encode(text[at]).tolist(), before.form.allowed()
        rest = rest_of_sentence(trained.vocabulary.chars, encode(text[at + 1 :]).tolist())
        model = Decoder(trained.config, trained.weights)
        found = candidate_posterior(model, before.window.ids, rest, allowed, token, trained.max_seq_len)
        likeliest = dict.fromkeys([*[*found][:10], token])
        return [(trained.vocabulary.chars[other], found[other]) for other in likeliest]

    def attention(self, ckpt_path: str, text: str, at: int) -> tuple[str, float]:
        """A picture of where a character looks, a row a head, as HTML; and the character's surprise in nats."""
        from songci.attention.plots import Picture  # here, for torch: poems are written without it
        from songci.attention.stats import character_losses, read

        trained = self.opened(ckpt_path)
        seen = text[max(0, at + 1 - trained.max_seq_len) : at + 1]
        reading = read(as_gpt(trained), trained.vocabulary, seen, title=trained.title)
        rows = np.concatenate([layer[0, :, -1].numpy() for layer in reading.weights])  # (layers · h, L)
        picture = Picture([reading], 1, 1, max(4, 0.17 * len(seen)), 0.5 + 0.16 * len(rows))
        picture.panels[0].imshow(rows, cmap="Blues", aspect="auto")
        picture.panels[0].set_xticks(range(len(seen)), [picture.label(char) for char in seen], fontsize=8)
        heads = [f"{layer}.{head}" for layer, own in enumerate(reading.weights) for head in range(own.size(1))]
        picture.panels[0].set_yticks(range(len(rows)), heads, fontsize=6)
        image = base64.b64encode(picture.png(110)).decode()
        return f'<img alt="attention" src="data:image/png;base64,{image}">', float(character_losses(reading)[-1])

    @on_page
    def templates(self, tune: str, ckpt_path: str) -> list:
        return self.forms.templates(tune_of(as_in_corpus(f"+++{tune}", self.opened(ckpt_path).vocabulary)))

    def legend(self, request: gr.Request) -> str:
        return SAID["legend"][language(request)]

    def choose_tune(self, tune: str, ckpt_path: str, draft: str, request: gr.Request) -> tuple:
        """The tune's forms, and the pattern of the commonest."""
        templates, i = self.templates(tune, ckpt_path), language(request)
        forms = [(f"{n}: {outline(t)}  {t.support} {SAID['poems'][i]}", n) for n, t in enumerate(templates, start=1)]
        choices = gr.update(choices=[(SAID["any"][i], 0), *forms], value=0)
        return choices, *self.choose_template(tune, ckpt_path, 0, draft)

    def choose_template(self, tune: str, ckpt_path: str, template: int, draft: str) -> tuple:
        """The form's pattern; and its blanks as a draft if it was chosen, unless one with characters is there."""
        chosen = self.templates(tune, ckpt_path)[max(0, template - 1)]
        blanks = poem.pattern(chosen) if template else ""
        own = draft == blanks or any(is_character(char) and char != BLANK for char in draft)
        return f'<pre class="pattern">{escape(drawn(chosen))}</pre>', gr.skip() if own else blanks

    def write(self, ckpt_path, tune, template, rhyme, acrostic, draft, count, desk, progress=gr.Progress()) -> Iterator:  # noqa: B008
        """Candidates, each shown as soon as it is there; a tab that is closed ends them. A draft may have its title."""
        seed, found, cards = random.randrange(2**31), [], ""
        for i in range(count):
            progress((i, count))
            start = draft if draft.startswith("+++") else f"+++{tune}\n{draft}"
            sample = self.written(ckpt_path, start, template, rhyme, acrostic, seed + i)
            cards += poem.as_html(sample.text, self.forms, name=str(i))
            found.append(sample.text)
            yield f'<div class="cards">{cards}</div>', replace(desk, candidates=tuple(found))

    def view(self, desk: Desk, ckpt_path: str, request: gr.Request) -> tuple:
        """The poem, what is known of it, what else could stand at the place that was clicked, and the files to keep."""
        nothing = gr.update(choices=[], value=None)
        if not desk.poem:
            return "", "", nothing, "", "", None, None, None
        text, i, others, look = desk.poem, language(request), nothing, ""
        result = poem.checked(text, self.forms)
        good = result.form and result.rhyme and not result.wrong
        if desk.at is not None and text[desk.at] != BLANK:
            picture, nats = self.attention(ckpt_path, text, desk.at)
            look = SAID["surprise"][i].format(char=text[desk.at], nats=nats, p=np.exp(-nats)) + f"<br>{picture}"
            if result.form and BLANK not in text:
                found = self.others(ckpt_path, text, desk.at)
                others = gr.update(choices=[(f"{char} {p:.1%}", char) for char, p in found], value=None)
        folder, name = Path(tempfile.mkdtemp(dir=self.files)), tune_of(text.partition("\n")[0])
        json = poem.as_json(text, self.forms, ckpt_path)
        kept = {".txt": text.encode(), ".jsonl": json.encode(), ".png": poem.as_png(text)}
        for ending, content in kept.items():
            (folder / (name + ending)).write_bytes(content)
        files = [str(folder / (name + ending)) for ending in kept]
        told = SAID["open" if BLANK in text else "good" if good else "off"][i]
        return poem.as_html(text, self.forms, desk.at), told, others, look, text.strip(), *files

    def take(self, desk: Desk, event: gr.EventData) -> Desk:
        return desk.changed(desk.candidates[event.poem])

    def click(self, desk: Desk, event: gr.EventData) -> Desk:
        return replace(desk, at=event.at) if event.at >= 0 else desk

    def swap(self, desk: Desk, char: str) -> Desk:
        return desk.changed(poem.with_chars(desk.poem, [desk.at], char), desk.at)

    def anew(self, desk: Desk, ckpt_path: str, request: gr.Request) -> Desk:
        """What follows the clicked character is written anew, in the same form."""
        start = desk.poem[: self.clicked(desk, request) + 1]
        return desk.changed(self.again(ckpt_path, start, desk.poem).text, desk.at)

    def blank(self, desk: Desk, request: gr.Request) -> Desk:
        clause = poem.clause_around(desk.poem, self.clicked(desk, request))
        return desk.changed(poem.with_chars(desk.poem, clause))

    def fill(self, desk: Desk, ckpt_path: str) -> Desk:
        """The blanks are written; without one, nothing changes."""
        return desk.changed(self.again(ckpt_path, desk.poem, desk.poem).text) if BLANK in desk.poem else desk

    def undo(self, desk: Desk) -> Desk:
        return replace(desk, poem=desk.past[-1], past=desk.past[:-1], at=None) if desk.past else desk

    def clicked(self, desk: Desk, request: gr.Request) -> int:
        if desk.at is None:
            raise gr.Error(SAID["no character"][language(request)], print_exception=False)
        return desk.at


def layout(page: Page, word: Callable) -> gr.Blocks:
    """The components, and what they call."""
    support = {tune: sum(template.support for template in own) for tune, own in page.forms.tunes.items()}
    tunes = sorted(support, key=lambda tune: -support[tune])
    with gr.Blocks(title="Songci GPT", delete_cache=(3600, 3600)) as blocks:
        desk = gr.State(Desk())
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                ckpt_path = gr.Dropdown(page.runs, label=word("run"))
                tune = gr.Dropdown(tunes, label=word("tune"), allow_custom_value=True, elem_id="tune")
                template = gr.Dropdown([0], label=word("template"), elem_id="template")
                with gr.Row():
                    rhyme = gr.Textbox(label=word("rhyme"), max_length=1, min_width=80, elem_id="rhyme")
                    acrostic = gr.Textbox(label=word("acrostic"), min_width=120)
                draft = gr.Textbox(label=word("draft"), lines=4, elem_id="draft")
                count = gr.Slider(1, 8, 3, step=1, label=word("count"))
                write = gr.Button(word("write"), variant="primary", elem_id="write")
                with gr.Accordion(word("pattern")):
                    pattern = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                legend, candidates = gr.HTML(), gr.HTML(js_on_load=CLICK, elem_id="candidates")
                vertical = gr.Checkbox(label=word("vertical"), elem_id="upright")
                shown, told = gr.HTML(js_on_load=CLICK, elem_id="poem"), gr.Markdown(elem_id="told")
                with gr.Row():
                    names = ("anew", "blank", "fill", "undo")
                    buttons = [gr.Button(word(name), size="sm", min_width=90, elem_id=name) for name in names]
                others, look = gr.Radio([], label=word("others"), elem_id="others"), gr.HTML(elem_id="look")
                kept = gr.Textbox(label=word("keep"), lines=3, buttons=["copy"], interactive=False)
                with gr.Row():
                    names = ("text", "json", "picture")
                    files = [gr.DownloadButton(word(name), size="sm", elem_id=name) for name in names]
        blocks.load(page.legend, None, legend)
        for event in (blocks.load, tune.change):
            event(page.choose_tune, [tune, ckpt_path, draft], [template, pattern, draft])
        template.input(page.choose_template, [tune, ckpt_path, template, draft], [pattern, draft])
        asked = [ckpt_path, tune, template, rhyme, acrostic, draft, count, desk]
        write.click(page.write, asked, [candidates, desk])
        calls = [(candidates.click, page.take, []), (shown.click, page.click, []), (others.input, page.swap, [others])]
        handlers = ((page.anew, [ckpt_path]), (page.blank, []), (page.fill, [ckpt_path]), (page.undo, []))
        calls += [(button.click, *called) for button, called in zip(buttons, handlers, strict=True)]
        for event, handler, more in calls:
            changed = event(handler, [desk, *more], desk)
            changed.success(page.view, [desk, ckpt_path], [shown, told, others, look, kept, *files])
        vertical.change(lambda on: gr.update(elem_classes=["vertical"] * on), vertical, shown)
    return blocks.queue(default_concurrency_limit=4)
