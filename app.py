"""The page: `python app.py`. Its parts live in fracture_lib/page, the answers come from the panel."""

import atexit
import ctypes
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from threading import Thread

# Before the imports that read them:
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no request leaves the page
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # or pandas sums up after each event
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a second thread spins on another visitor's core
# Gradio's own folder is shared with every other app on the machine, and what is in one any of them serves.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="uploads-", dir=os.environ.get("GRADIO_TEMP_DIR"))
# Else glibc keeps what each film, and each model while it was read, took: over 100 MB more, and growing.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
if mallopt := getattr(ctypes.pythonapi, "mallopt", None):
    mallopt(M_MMAP_THRESHOLD, 2_000_000)
    mallopt(M_ARENA_MAX, 2)

from fracture_lib.panel import Panel

if __name__ == "__main__":
    # While Gradio is imported, which takes longer; and the memory that reading them takes is free before it.
    panel = Panel()
    Thread(target=panel.load_all, daemon=True).start()

import gradio as gr
from starlette.middleware import Middleware

from fracture_lib.drawing import draw_film
from fracture_lib.labels import CLASSES
from fracture_lib.page import about_models, endpoints, many_films, one_film, views
from fracture_lib.page.server import Page, claim, guard, keep_clean
from fracture_lib.preprocess import MAX_BYTES

EXAMPLES = ("Spiral", "Comminuted", "Hairline", "Greenstick")
INTRODUCTION = f"""# Fracture type from an X-ray
Three models and their ensemble each name one of {len(CLASSES)} types of fracture. Upload a film, compare."""
# Gradio's own greys and orange are too faint on white for WCAG's contrast of 4.5 to 1.
THEME = gr.themes.Default(primary_hue="blue").set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    color_accent="*primary_600",
)
AT_ONCE = 2  # films asked about at a time: a Space has two cores
WAITING = 32  # requests; the next is told at once that the page is busy
VISITORS = 200  # whose film on show is kept, half a megabyte each; the one longest away has to ask again
CLEAN = (300, 900)  # seconds: how often uploads are looked at, and the age at which they are deleted


def draw_examples(folder):
    """Draw the example films into `folder`; return [(label, path)]."""
    paths = [folder / f"drawn-{label.lower()}.png" for label in EXAMPLES]
    for label, path in zip(EXAMPLES, paths, strict=True):
        draw_film(label).save(path)
    return [(f"{label} (drawn)", path) for label, path in zip(EXAMPLES, paths, strict=True)]


def build_page(panel, examples):
    """Return the Blocks page on which `panel` answers."""
    with Page(title="Fracture type from an X-ray") as page:
        gr.Markdown(INTRODUCTION)
        gr.Markdown(views.NOT_A_DEVICE, elem_id="disclaimer")
        with gr.Tab("One film", elem_id="one-film"):
            one_film.build(page, panel, examples)
        with gr.Tab("Many films", elem_id="many-films"):
            many_films.build(panel)
        with gr.Tab("Models", elem_id="models") as tab:
            about_models.build(tab, panel)
        with gr.Accordion(f"The {len(CLASSES)} classes", open=False):
            gr.Markdown("\n".join(f"- **{c.label}**: {c.description}" for c in CLASSES))
        endpoints.build(panel)
    return page


def main(panel):
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    _lock = claim(uploads)  # held until the end
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    stopped = []  # by which signals. No exception, as one that comes in a destructor is lost
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: stopped.append(number))
    with tempfile.TemporaryDirectory(prefix="drawn-films-") as folder:
        page = build_page(panel, draw_examples(Path(folder)))
        Thread(target=keep_clean, args=(uploads, *CLEAN), daemon=True).start()
        page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False).launch(
            theme=THEME,
            css=views.CSS,
            js=views.JS,
            ssr_mode=False,
            max_file_size=MAX_BYTES,
            state_session_capacity=VISITORS,
            app_kwargs={"middleware": [Middleware(guard)]},
            run_history=False,  # films' names would stay in the browser
            enable_monitoring=False,
            mcp_server=True,
            footer_links=["api", "gradio", "settings"],
            prevent_thread_lock=True,
        )
        while not stopped:
            time.sleep(0.1)
        page.close()  # and then its folders are deleted


if __name__ == "__main__":
    main(panel)
