"""What the page says, in English and Chinese, and how it looks."""

LANGUAGES = {"en": 0, "zh": 1, "zh-CN": 1, "zh-TW": 1}  # of browsers: the places in WORDS and SAID
WORDS = {  # on the components
    "run": ("Model: a folder of train.py", "模型：train.py 的文件夹"),
    "tune": ("Tune: its name or another of its names, traditional characters too", "词牌（别名、繁体亦可）"),
    "template": ("Form", "体式"),
    "rhyme": ("Rhymes with", "押韵字"),
    "acrostic": ("First characters of the sentences", "藏头"),
    "draft": ("Draft: □ is to be written, the rest stays; it may end early", "草稿：□ 待写，其余保留；可以只写开头"),
    "count": ("Candidates", "候选数"),
    "write": ("Write", "写"),
    "pattern": ("Pattern: ○ level ● oblique ◎ either; letters: rhymes", "词谱：○ 平 ● 仄 ◎ 可平可仄；字母：韵"),
    "vertical": ("Vertical", "竖排"),
    "anew": ("Write what follows anew", "重写后文"),
    "blank": ("Blank the clause", "空出此句"),
    "fill": ("Fill the blanks", "补全空字"),
    "undo": ("Undo", "撤销"),
    "others": ("What could stand here", "此处可用的字"),
    "keep": ("Keep", "保存"),
    "text": ("Text", "文本"),
    "json": ("JSON", "JSON"),
    "picture": ("Picture", "图片"),
}
KINDS = '<span class="level">{}</span> <span class="oblique">{}</span> <span class="level rhyme">{}</span> '
KINDS += '<span class="fault">{}</span> · {}'
HOW = "click a candidate to take it, then a character to change it", "点一首候选，再点其中的字"
SAID = {  # by the server
    "legend": (
        KINDS.format("level", "oblique", "rhyme", "out of tone or rhyme", HOW[0]),
        KINDS.format("平", "仄", "韵", "失律、出韵", HOW[1]),
    ),
    "any": ("as poets chose", "依词人所用"),
    "poems": ("poems", "首"),
    "good": ("In form, in rhyme, in tone.", "合体、合韵、合律。"),
    "open": ("Blanks are to be filled.", "尚有空字待补。"),
    "off": ("Departs from its tune.", "与词牌不合。"),
    "surprise": (
        "{char}: a surprise of {nats:.1f} nats (probability {p:.1%}). Where it looks, layer.head by row:",
        "{char}：意外程度 {nats:.1f} 奈特（概率 {p:.1%}）。它看向何处（每行是“层.头”）：",
    ),
    "no character": ("Click a character of the poem first.", "请先点词中的一个字。"),
    "no runs": (
        "No trained model in `{}` yet: `make demo` makes one in minutes (or `python train.py`). Then start again.",
        "`{}` 里还没有训练好的模型：运行 `make demo`（或 `python train.py`），几分钟就有；然后重新启动。",
    ),
}
CSS = """
.poem { font: 1.35rem/2 "Noto Serif CJK SC", "Songti SC", SimSun, serif; }
.poem h3 { font-size: 1rem; margin: 0; opacity: .6; } .poem p { margin: 0; } .poem b { font-weight: 400; }
.poem b { display: inline-block; } .poem span { cursor: pointer; padding: 0 .04em; }
.level { color: #1a6fb0; } .oblique { color: #a5512b; } .rhyme { font-weight: 700; text-decoration: underline; }
.fault { background: #ffd9d9; } .chosen { outline: 2px solid; border-radius: 3px; }
.vertical .poem { writing-mode: vertical-rl; max-height: 24rem; overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; } .pattern { font-size: .85rem; overflow-x: auto; }
.cards .poem { font-size: 1rem; border: 1px solid #8884; border-radius: 6px; padding: .6rem; cursor: pointer; }
.dark .level { color: #7cc0f0; } .dark .oblique { color: #f0a582; } .dark .fault { background: #6b2b2b; }
"""
CLICK = """element.addEventListener('click', ({target}) => {
  const char = target.closest('[data-i]'), poem = target.closest('.poem');
  if (poem) trigger('click', {at: char ? +char.dataset.i : -1, poem: +poem.dataset.poem});
});"""
