"""The page of `nextscale serve`, and its API for programs: a Gradio front of `NextScale.upscale`."""

from __future__ import annotations

import html
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from nextscale import image as images
from nextscale.errors import ImageError, NextScaleError
from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale, Progress, Reveal, shown_map, to_pil
from nextscale.upscale.options import ColorFix, InputClass, UpscaleOptions

PREVIEW_SECONDS: Final = 1.5
"""Between two looks at an unfinished picture."""
SHOWN_SIDE: Final = 2048
"""Longest side of what the page shows; downloads are whole."""
GUESSED: Final = (230, 0, 140)
"""Colour of the confidence map's overlay, rare in photographs."""
LEGEND: Final = """<div class="legend"><span class="bar"></span><span><b>Pink</b>: of this picture, the places where the
model had the most details to choose among and took one. Do not read faces, text or numbers off them. <b>No colour</b>:
the surer half. (How sure the model was is not always how right.)</span></div>"""
CSS: Final = """
.legend {display: flex; gap: 12px; align-items: center; font-size: 14px; flex-wrap: wrap}
.legend .bar {width: 90px; height: 14px; border: 1px solid #999;
  background: linear-gradient(90deg, #8a8a8a, rgb(230, 0, 140))}
.status progress {width: 100%; height: 14px; accent-color: #ea580c}
.gradio-container {max-width: 1180px !important; margin: auto !important}
"""


class CancelledError(Exception):
    """Nobody waits for this picture any more."""


@dataclass(frozen=True)
class Limits:
    """What a stranger may ask for."""

    pixels: int = 4_000_000
    """Of an uploaded picture."""
    result_pixels: int = 64_000_000
    """Of the largest result."""
    waiting: int = 20
    """Requests in the queue."""

    def check(self, picture: Picture, scale: float) -> None:
        """Raises ImageError where the result would be too large."""
        width, height = picture.size
        if width * height * scale * scale > self.result_pixels:
            raise ImageError(
                f"{width} x {height} times {scale:g} is more than {self.result_pixels / 1e6:g} million pixels; "
                "choose a smaller factor or a smaller picture"
            )


@dataclass(frozen=True)
class Files:
    """One factor's files, as the page shows them."""

    shown: str
    complete: bool = False
    download: str | None = None
    overlay: str | None = None
    """The result with the places coloured where the model guessed."""
    confidence: str | None = None


@dataclass(frozen=True)
class Shown:
    """A moment of a picture's coming."""

    status: str
    share: float | None
    """How much is done, 0 to 1; None when no more is coming."""
    before: str
    files: dict[float, Files]


@dataclass
class Jobs:
    """Who is waiting, so that one who leaves is not worked for."""

    running: dict[str, list[threading.Event]] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    """When a visitor last pressed Stop: what they asked for before is not begun any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, session: str, asked: float = math.inf) -> threading.Event:
        """The flag that tells one picture's work to stop; set at once if it was stopped in the queue.

        Args:
            asked: when it was asked for, in seconds of `time.time`.
        """
        flag = threading.Event()
        with self.lock:
            self.running.setdefault(session, []).append(flag)
            if asked < self.stopped.get(session, 0):
                flag.set()
        return flag

    def end(self, session: str, flag: threading.Event) -> None:
        """That work is over."""
        flag.set()
        with self.lock:
            flags = self.running.get(session, [])
            if flag in flags:
                flags.remove(flag)
            if not flags:
                self.running.pop(session, None)

    def stop(self, session: str) -> None:
        """Stop all that a visitor is waiting for."""
        with self.lock:
            self.stopped[session] = time.time()
            while len(self.stopped) > 10_000:  # the oldest of them
                del self.stopped[next(iter(self.stopped))]
            for flag in self.running.get(session, []):
                flag.set()


class Restorer:
    """One model for all visitors; pictures come as files in folders of their own, under names of ours."""

    def __init__(self, model: NextScale, folder: Path, limits: Limits) -> None:
        self.model = model
        self.folder = folder
        self.limits = limits
        self.native = model.tokenizer.ladder.factors
        self.has_restorer = model.restorer is not None

    def read(self, path: str, options: UpscaleOptions) -> Picture:
        """An uploaded picture.

        Raises:
            ImageError: it is none, or too large.
        """
        picture = images.read(path, max_pixels=self.limits.pixels)
        self.limits.check(picture, max(options.scale, 1))
        return picture

    def restore(self, path: str, options: UpscaleOptions, stop: threading.Event) -> Iterator[Shown]:
        """Everything there is to see until the picture is done; `stop` ends the work at its next step.

        Raises:
            NextScaleError: as `NextScale.upscale`, or the picture cannot be read.
        """
        picture = self.read(path, options)
        folder = self._new_folder()
        before = _show(folder / "before.png", picture)
        news: queue.Queue[Reveal | Progress | BaseException | None] = queue.Queue()

        def work() -> None:
            def on_progress(progress: Progress) -> None:
                if stop.is_set():
                    raise CancelledError
                news.put(progress)

            try:
                for reveal in self.model.upscale(picture, options, stream=True, on_progress=on_progress):
                    news.put(reveal)
                news.put(None)
            except BaseException as error:
                news.put(error)

        threading.Thread(target=work, daemon=True).start()
        files: dict[float, Files] = {}
        started, looked = time.monotonic(), dict[float, float]()
        share, status = 0.0, "Looking at your photo ..."
        try:
            yield Shown(status, share, before, {})
            while (item := news.get()) is not None:
                if isinstance(item, CancelledError):
                    yield Shown("Stopped.", None, before, dict(files))
                    return
                if isinstance(item, BaseException):
                    raise item
                now = time.monotonic()
                if isinstance(item, Progress):
                    share = max(share, item.share)
                    left = (now - started) * (1 - share) / share
                    status = f"Part {min(item.tiles_done + 1, item.tiles)} of {item.tiles}, about {left:.0f} s left"
                    if now - looked.get(0.0, started) < 0.3:
                        continue
                    looked[0.0] = now
                elif item.complete:
                    files[item.factor] = self._keep(folder, item)
                    status = f"x{item.factor:g} is ready ..."
                elif now - looked.get(item.factor, started) >= PREVIEW_SECONDS:
                    looked[item.factor] = now
                    name = f"coming_x{item.factor:g}_{len(looked)}_{now:.0f}.png"
                    files[item.factor] = Files(_show(folder / name, item.picture))
                else:
                    continue
                yield Shown(status, share, before, dict(files))
            yield Shown(f"Done in {time.monotonic() - started:.1f} s.", 1.0, before, dict(files))
        finally:
            stop.set()

    def whole(self, path: str, options: UpscaleOptions, stop: threading.Event) -> list[str]:
        """The downloads of every factor, small to large, each with its confidence map."""
        *_, last = self.restore(path, options, stop)
        done = [files for _, files in sorted(last.files.items()) if files.complete]
        return [path for files in done for path in (files.download, files.confidence) if path]

    def _new_folder(self) -> Path:
        folder = self.folder / f"restored-{secrets.token_hex(16)}"
        folder.mkdir(parents=True)
        return folder

    def _keep(self, folder: Path, reveal: Reveal) -> Files:
        stem = f"restored_x{reveal.factor:g}"
        download = folder / f"{stem}.png"
        images.write(download, reveal.picture)
        plain = reveal.picture.bits == 8 and max(reveal.picture.size) <= SHOWN_SIDE
        shown = str(download) if plain else _show(folder / f"{stem}_shown.png", reveal.picture)
        overlay = confidence = None
        if reveal.confidence is not None:
            confidence = str(folder / f"{stem}_confidence.png")
            shown_values = shown_map(reveal.confidence, reveal.expected_error)
            images.write(confidence, Picture(shown_values[..., None]))
            sure = reveal.confidence if reveal.expected_error is None else 255 - shown_values
            overlay = _show(folder / f"{stem}_overlay.png", overlaid(reveal.picture, sure))
        return Files(shown, True, str(download), overlay, confidence)


def overlaid(picture: Picture, confidence: NDArray[np.uint8]) -> Picture:
    """A picture coloured outside its surer half, most where the model was least sure; opaque, 8 bits."""
    rgb = np.asarray(to_pil(picture).convert("RGB"), np.float32)
    counts = np.bincount(confidence.reshape(-1), minlength=256)
    rank = (np.cumsum(counts) / confidence.size)[confidence]  # the share of places that are no surer
    doubt = (0.75 * np.clip(1 - 2 * rank, 0, 1))[..., None].astype(np.float32)
    mixed = rgb * (1 - doubt) + np.asarray(GUESSED, np.float32) * doubt
    return Picture(mixed.round().astype(np.uint8), icc=None if picture.is_grey else picture.icc)


def _show(path: Path, picture: Picture) -> str:
    """Write what a browser can show quickly: a PNG of 8 bits, not larger than `SHOWN_SIDE`, with its profile."""
    shown = to_pil(picture)
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    shown.save(path, "PNG", icc_profile=picture.icc, compress_level=1)
    return str(path)


def sweep(folder: Path, age: float) -> int:
    """Remove files that were last written more than `age` seconds ago, and folders left empty; how many files."""
    removed = 0
    before = time.time() - age
    for path in sorted(folder.rglob("*"), reverse=True):
        try:
            if path.is_dir():
                if path.stat().st_mtime < before:
                    path.rmdir()
            elif path.stat().st_mtime < before:
                path.unlink()
                removed += 1
        except OSError:  # a folder that is not empty; a file that another took away
            continue
    return removed


def build(restorer: Restorer, examples: list[Path]) -> gr.Blocks:
    """The page, ready to be launched."""
    jobs = Jobs()
    native = [f"x{factor:g}" for factor in restorer.native]
    defaults = UpscaleOptions()
    with gr.Blocks(title="nextscale: a better photo", analytics_enabled=False, fill_width=True) as page:
        results = gr.State({}, time_to_live=3600)
        gr.Markdown(
            "# nextscale\nDrop a blurred, noisy or small photo. It comes back cleaned, and up to four times as large."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.Image(
                    label="Your photo", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=300,
                    elem_id="photo",
                )  # fmt: skip
                # The file itself: read by us, with its profile and all of its bits, and refused in a sentence of ours.
                upload.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
                factor = gr.Radio(native, value=native[-1], label="Enlarge", elem_id="factor")
                fidelity = gr.Slider(
                    0, 1, value=defaults.fidelity, step=0.05, label="Fidelity", elem_id="fidelity",
                    info="1: close to your photo. 0: more is redrawn.",
                )  # fmt: skip
                denoise = gr.Slider(
                    0, 1, value=defaults.denoise, step=0.05, label="Denoise", elem_id="denoise",
                    info="1: noise goes. 0: grain and paper texture stay.", visible=restorer.has_restorer,
                )  # fmt: skip
                fast = gr.Checkbox(
                    defaults.fast, label="Fast", elem_id="fast", visible=restorer.has_restorer,
                    info="A fraction of the time, without the map of what was guessed.",
                )  # fmt: skip
                seed = gr.Number(
                    defaults.seed, label="Seed", precision=0, minimum=0, elem_id="seed",
                    info="Another number, other details: only with a temperature (Advanced).",
                )  # fmt: skip
                with gr.Accordion("Advanced", open=False):
                    options = advanced(defaults)
                with gr.Row():
                    stop = gr.Button("Stop", elem_id="stop")
                    start = gr.Button("Restore", variant="primary", elem_id="start")
                if examples:
                    gr.Examples([[str(path)] for path in examples], [upload], label="Or try one of these")
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(status_line("", None), elem_classes="status", elem_id="status")
                with gr.Tabs(selected=native[-1]) as tabs:
                    sliders, downloads = [], []
                    for name in native:
                        with gr.Tab(label(name), id=name):
                            sliders.append(
                                gr.ImageSlider(
                                    label="Before | after: drag the line", format="png", type="filepath",
                                    interactive=False, max_height=640, elem_id=f"slider-{name}",
                                    buttons=["fullscreen"],
                                )
                            )  # fmt: skip
                            downloads.append(
                                gr.DownloadButton("Download PNG", interactive=False, elem_id=f"download-{name}")
                            )
                guessed = gr.Checkbox(label="Show where details were guessed", value=False, elem_id="guessed")
                legend = gr.HTML(LEGEND, visible=False, elem_id="legend")

        def view(moment: Shown, overlay: bool, ready: set[float]) -> tuple[Any, ...]:
            """One moment as updates of all outputs."""
            updates: dict[Any, Any] = {status: status_line(moment.status, moment.share)}
            newest = None
            for name, value, slider, download in zip(native, restorer.native, sliders, downloads, strict=True):
                files = moment.files.get(value)
                if files is None:
                    updates[slider], updates[download] = gr.skip(), gr.skip()
                    continue
                after = files.overlay if overlay and files.overlay else files.shown
                updates[slider] = (moment.before, after)
                updates[download] = gr.DownloadButton(value=files.download, interactive=files.complete)
                if files.complete and value not in ready:
                    ready.add(value)
                    newest = name
            updates[tabs] = gr.Tabs(selected=newest) if newest else gr.skip()
            updates[results] = {"before": moment.before, "files": moment.files}
            return tuple(updates[part] for part in outputs)

        def run(request: gr.Request, asked: float, path: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
            *chosen, overlay = values
            if path is None:
                raise gr.Error("Choose a photo first.", title="No photo", print_exception=False)
            session = request.session_hash or ""
            flag = jobs.begin(session, asked)
            empty = [gr.ImageSlider(value=None)] * len(sliders) + [
                gr.DownloadButton(value=None, interactive=False)
            ] * len(downloads)
            yield (status_line("Starting ...", 0.0), *empty, gr.Tabs(selected=native[0]), {})
            ready: set[float] = set()
            try:
                with plainly():
                    for moment in restorer.restore(path, chosen_options(*chosen), flag):
                        yield view(moment, overlay, ready)
            except gr.Error:
                yield (status_line("This did not work.", None), *[gr.skip()] * (len(outputs) - 1))
                raise
            finally:
                jobs.end(session, flag)

        def toggled(overlay: bool, state: dict[str, Any]) -> tuple[Any, ...]:
            shown = []
            for value in restorer.native:
                files = state.get("files", {}).get(value)
                after = files and (files.overlay if overlay and files.overlay else files.shown)
                shown.append((state["before"], after) if after else gr.skip())
            return gr.HTML(visible=overlay), *shown

        def leave(request: gr.Request) -> None:
            jobs.stop(request.session_hash or "")

        def program(
            photo: str | None,
            scale: float,
            fidelity: float,
            seed: float,
            confidence: bool,
            denoise: float,
            fast: bool,
            request: gr.Request,
        ) -> list[str]:
            if photo is None:
                raise gr.Error("Send a photo.", print_exception=False)
            session = request.session_hash or ""
            flag = jobs.begin(session)
            try:
                with plainly():
                    given = UpscaleOptions(
                        scale=scale,
                        fidelity=fidelity,
                        seed=int(seed),
                        confidence=confidence,
                        denoise=denoise,
                        fast=fast,
                        all_factors=True,
                    )
                    return restorer.whole(photo, given, flag)
            finally:
                jobs.end(session, flag)

        outputs = [status, *sliders, *downloads, tabs, results]
        asked_at = gr.State(0.0)
        start.click(
            time.time, None, asked_at, queue=False, show_progress="hidden", api_visibility="private"
        ).then(
            run, [asked_at, upload, factor, fidelity, denoise, fast, seed, *options, guessed], outputs,
            show_progress="hidden", concurrency_id="model", concurrency_limit=1, api_visibility="private",
        )  # fmt: skip
        stop.click(leave, None, None, queue=False, api_visibility="private")
        guessed.change(
            toggled,
            [guessed, results],
            [legend, *sliders],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        page.unload(leave)
        # For programs: parts that nobody sees, with names that their calls use.
        with gr.Row(visible=False):
            sent = gr.File(label="photo", type="filepath")
            asked = [
                gr.Number(defaults.scale, label="scale"),
                gr.Number(defaults.fidelity, label="fidelity"),
                gr.Number(defaults.seed, label="seed", precision=0),
                gr.Checkbox(False, label="confidence"),
                gr.Number(defaults.denoise, label="denoise"),
                gr.Checkbox(defaults.fast, label="fast"),
            ]
            files = gr.File(label="pictures", file_count="multiple")
            gr.Button("upscale").click(
                program, [sent, *asked], files, concurrency_id="model", concurrency_limit=1, api_name="upscale"
            )
    page.queue(max_size=restorer.limits.waiting, default_concurrency_limit=4)
    return page  # type: ignore[no-any-return]


class plainly:  # noqa: N801 - reads as the statement it is
    """What a user can cause becomes a plain sentence on the page; so does a mistake of ours, with its kind."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, NextScaleError):
            text = str(error)
            raise gr.Error(
                html.escape(text[:1].upper() + text[1:] + "."), title="This did not work", duration=None,
                print_exception=False,
            ) from None  # fmt: skip
        if isinstance(error, Exception) and not isinstance(error, gr.Error):
            raise gr.Error(f"Internal error ({type(error).__name__}).", title="This did not work") from error


def label(name: str) -> str:
    """A tab's title."""
    return f"{name} (cleaned)" if name == "x1" else name


def advanced(defaults: UpscaleOptions) -> list[Any]:
    """The controls of the fold, in the order in which `chosen_options` takes them last."""
    return [
        gr.Slider(0, 1.5, value=defaults.temperature, step=0.05, label="Temperature", info="0: the likeliest details."),
        gr.Number(defaults.top_k, label="Top k", precision=0, minimum=0, info="The k likeliest only; 0: all."),
        gr.Slider(0, 1, value=defaults.top_p, step=0.05, label="Top p", info="0: all."),
        gr.Slider(0, 5, value=defaults.cfg, step=0.25, label="Guidance", info="0: off. Takes twice as long."),
        gr.Radio(
            list(get_args(InputClass)), value=defaults.input_class, label="Your photo is", info="Clean: only small."
        ),
        gr.Radio(list(get_args(ColorFix)), value=defaults.color_fix, label="Colours", info="How they are kept."),
    ]  # fmt: skip


def chosen_options(factor: str, fidelity: float, denoise: float, fast: bool, seed: float, *fold: Any) -> UpscaleOptions:
    """The options that the page's controls ask for; a fast run has no codes, so neither fidelity nor a map.

    Raises:
        OptionError: one is out of range.
    """
    temperature, top_k, top_p, cfg, kind, color_fix = fold
    return UpscaleOptions(
        scale=float(factor.removeprefix("x")), all_factors=True, confidence=not fast, denoise=float(denoise), fast=fast,
        fidelity=1.0 if fast else float(fidelity), seed=int(seed or 0), temperature=float(temperature),
        top_k=int(top_k or 0), top_p=float(top_p), cfg=float(cfg),
        input_class=kind, color_fix=color_fix,
    )  # fmt: skip


def status_line(text: str, share: float | None) -> str:
    """A sentence and, while there is work, a bar."""
    bar = "" if share is None else f'<progress value="{share:.3f}" max="1"></progress>'
    return f"<div>{html.escape(text)}</div>{bar}"


def keep_swept(folder: Path, age: float, every: float, ended: threading.Event) -> Callable[[], None]:
    """Sweep a folder now and then until `ended`; returns what to run in a thread."""

    def work() -> None:
        while not ended.wait(every):
            sweep(folder, age)

    return work
