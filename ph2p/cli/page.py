"""The live page as a Gradio application: `ph2p ui`. The work is in `live.py`, what is shown of it in `view.py`."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # before Gradio is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ph2p.cli import view
from ph2p.config.compose import config_dir
from ph2p.config.keywords import as_overrides
from ph2p.errors import UserError
from ph2p.run.live import DONE, FAILED, UPLOADS, Live
from ph2p.run.stopping import requested

LARGEST = "100mb"  # of an upload
TICK = 0.7  # seconds between two looks at the work
SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # or Gradio asks Google for fonts
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
# The browser itself refuses whatever would go to another host. Gradio's own parts need inline code and `eval`.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
HEAD = "<h1>ph2p</h1><p>Which words would make this model paint this picture?</p>"


class Headers:
    """Sends the policy with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        await self.app(scope, receive, sent)


def options(group: str) -> list[str]:
    """The names of a group's YAML files."""
    return sorted(file.stem for file in (config_dir() / group).glob("*.yaml") if file.stem != "folder")


def words_of(model: str, method: str, length: float, require: str, forbid: str, minutes: float | None) -> list[str]:
    """What was chosen on the page as words of the command line."""
    given: dict[str, Any] = {"generator": model.strip()} if model and model.strip() else {}
    given |= {"method": method, "prompt_length": int(length), "time_limit": minutes or None}
    given |= {"require": _split(require), "forbid": _split(forbid)}
    return as_overrides(**given)


def _split(text: str | None) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", text or "") if word]


def build_page(live: Live) -> gr.Blocks:
    """The page over a queue of pictures."""
    with gr.Blocks(analytics_enabled=False, title="ph2p") as page:
        gr.HTML(HEAD, elem_id="head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                wishes = _wishes(live)
                start = gr.Button("Find prompts", variant="primary", elem_id="start")
                said = gr.HTML(elem_id="said")
            with gr.Column(scale=3, min_width=300):
                now = gr.HTML(elem_id="now")
                with gr.Row():
                    early = gr.Button("Stop early, keep the best so far", size="sm", elem_id="early", interactive=False)
                    clear = gr.Button("Empty the queue", size="sm", elem_id="clear", interactive=False)
                results = gr.HTML(elem_id="results")
        seen = gr.State(-1)  # how many finished pictures this tab shows

        def look(shown: int) -> tuple[Any, ...]:
            jobs = list(live.jobs)
            count = sum(job.state in (DONE, FAILED) for job in jobs)
            news = view.finished(jobs) if count != shown else gr.skip()
            working = live.working
            can = working is not None and not working.finish
            return view.running(jobs), news, count, gr.update(interactive=can), gr.update(interactive=_waits(live))

        shown = [now, results, seen, early, clear]
        start.click(_adding(live), wishes, [said, wishes[0]], show_progress="hidden")
        early.click(live.finish_early, show_progress="hidden")
        clear.click(live.drop_waiting, show_progress="hidden")
        gr.Timer(TICK).tick(look, [seen], shown, show_progress="hidden", queue=False)
        page.load(look, [seen], shown, show_progress="hidden")
    return page


def _wishes(live: Live) -> list[Any]:
    """What is asked for, in the order of `words_of`'s arguments behind the pictures."""
    pictures = gr.File(file_count="multiple", file_types=["image"], label="Pictures", height=150, elem_id="pictures")
    model = gr.Dropdown(
        [(f"as started: {live.model}", ""), *options("generator")],
        value="",
        label="Model",
        info="An option, a folder, or a hub id such as owner/name.",
        allow_custom_value=True,
        elem_id="model",
    )
    with gr.Row():
        method = gr.Dropdown(options("method"), value="ph2p_plus", label="Method", min_width=140, elem_id="method")
        minutes = gr.Number(0, label="Minutes (0: no limit)", minimum=0, min_width=140, elem_id="minutes")
    length = gr.Slider(1, 20, value=12, step=1, label="Length", elem_id="length")
    require = gr.Textbox(label="Words that must appear", placeholder="red, square", elem_id="require")
    forbid = gr.Textbox(label="Words that may not", placeholder="and, of", elem_id="forbid")
    return [pictures, model, method, length, require, forbid, minutes]


def _adding(live: Live) -> Callable[..., tuple[str, Any]]:
    def add(pictures: list[str] | None, *chosen: Any) -> tuple[str, Any]:
        """Put the pictures into the queue; what is wrong is said beside the button, and they stay."""
        if not pictures:
            return view.complaint("Drop a picture first."), gr.skip()
        try:
            live.add(pictures, words_of(*chosen))
        except UserError as error:
            return view.complaint(str(error)), gr.skip()
        return "", None

    return add


def _waits(live: Live) -> bool:
    return any(job.state == "waiting" and not job.drop for job in list(live.jobs))


def _download(live: Live) -> Route:
    """`/download/zip` and `/download/jsonl`: what was found until now, made when it is asked for."""

    def download(request: Request) -> FileResponse:
        path = live.archive() if request.path_params["kind"] == "zip" else live.lines()
        return FileResponse(path, filename=f"ph2p-{path.name}")

    return Route("/download/{kind}", download)


def launch(live: Live, host: str, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or a signal to stop."""
    os.environ["GRADIO_TEMP_DIR"] = str(live.folder / UPLOADS)
    hosts = ["127.0.0.1", "localhost", host] if host not in ("0.0.0.0", "::") else ["*"]
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="gray", font=SYSTEM, font_mono=MONO)
    page = build_page(live)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Headers)]
    try:
        app, address, _ = page.queue(api_open=False).launch(
            server_name=host,
            server_port=port or None,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            max_file_size=LARGEST,
            theme=theme,
            css=Path(view.STYLE).read_text(),
            app_kwargs={"middleware": middleware},
        )
    except OSError as error:  # Gradio's text names an option of its own
        raise UserError(f"{host}:{port or 7860}: cannot be listened at; give another --port or --host") from error
    _serve(live, page, app, lambda: say(f"Open {address}; results in {live.folder}/; Ctrl-C ends it"))


def _serve(live: Live, page: gr.Blocks, app: Any, ready: Callable[[], None]) -> None:
    """Answer until Ctrl-C or a signal to stop."""
    app.router.routes.insert(0, _download(live))  # before Gradio's own, which take every address
    ready()
    try:
        while not requested():
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    finally:
        live.close()
        page.close(verbose=False)
