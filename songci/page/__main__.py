"""A page to compose on: choose a tune, give what is there already, let the rest be written, and change it.

It opens in the browser, at an address of this machine that no other can reach; nothing is fetched from the network.

  python -m songci.page                        with the runs in workdirs/
  python -m songci.page --host 0.0.0.0         for other machines too, whoever can reach this one

It needs one more package: pip install -r requirements-page.txt
"""

import os
import socket
from pathlib import Path

from songci.cli import ArgumentParser, UserError, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.page.words import CSS, LANGUAGES, SAID, WORDS
from songci.runs import BEST


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--workdirs", default="workdirs", help="the folder of the runs' folders")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: all of this machine's")
    parser.add_argument("--port", type=number(int, 1, 65535), help="if left out, the first free one from 7860 on")
    parser.add_argument("--no_browser", action="store_true", help="open no browser")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks for its own page once, and would ask a proxy for it
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", args.host]))
    try:
        import gradio as gr

        from songci.page import desk
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-page.txt") from None
    word = gr.I18n(**{code: {key: told[i] for key, told in WORDS.items()} for code, i in LANGUAGES.items()})
    runs = sorted(str(path.parent) for path in Path(args.workdirs).glob(f"*/{BEST}"))
    if runs:
        blocks = desk.layout(desk.Page(args.data_root, runs), word)
    else:
        with gr.Blocks(title="Songci GPT") as blocks:
            gr.Markdown("\n\n".join(told.format(args.workdirs) for told in SAID["no runs"]))
    who = "only this machine" if args.host in ("127.0.0.1", "localhost") else "every machine that can reach this one"
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # its own are Google's
    look = {"theme": theme, "css": CSS, "i18n": word, "footer_links": []}
    where = {"server_name": args.host, "server_port": args.port, "inbrowser": not args.no_browser}
    try:  # a port that is taken, or no address of this machine: Gradio would try for minutes
        socket.create_server((args.host, args.port or 0)).close()
    except OSError as error:
        raise UserError(f"cannot listen on {args.host}:{args.port or ''} ({error.strerror})") from None
    _, address, _ = blocks.launch(**look, **where, quiet=True, prevent_thread_lock=True)
    print(f"{address}: {who} can open it; Ctrl-C ends it", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    run(main)
