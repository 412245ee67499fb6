"""Rungs that measure: the step on one card for every combination of settings, all cards together, the data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from focal.config import load_config, to_flat_dict
from tools.ascend_acceptance.child import REPOSITORY, last_line, read_result, run_command, run_task
from tools.ascend_acceptance.correctness import float16_products, jit_levels
from tools.ascend_acceptance.ladder import RungFailed, Session
from tools.ascend_acceptance.pictures import write_pictures
from tools.ascend_acceptance.settings import Measured, fastest_safe


def combinations(session: Session) -> list[dict[str, Any]]:
    """Settings whose step is timed, the present defaults first; each runs in a process of its own."""
    levels = jit_levels(session)
    if session.target != "Ascend":
        amps = ["O0"] if session.quick else ["O0", "O1", "O2"]
        # A CPU ignores jit_level; the second one shows that the ladder goes through them.
        levels = levels if session.quick else ["auto", "O1"]
        return [{"jit_level": level, "amp_level": amp} for level in levels for amp in amps]
    amps = ["O1"] if session.quick else ["O1", "O2", *([] if float16_products(session) else ["bf16"])]
    sinks = [False, True]
    found = [{"jit_level": level, "amp_level": amp, "dataset_sink_mode": sink}
             for level in levels for amp in amps for sink in sinks]  # fmt: skip
    if "O0" in levels:
        found.append({"jit_level": "O0", "amp_level": "O1", "dataset_sink_mode": False, "kernel_launch_group": 2})
    if session.figure("flash", "attention") == "flash":
        found.append({"jit_level": "auto", "amp_level": "O1", "dataset_sink_mode": False, "attention": "products"})
    return found


def steps_and_rounds(session: Session) -> tuple[int, int]:
    return (20, 5) if session.target == "Ascend" and not session.quick else (3, 3)


def one_card(session: Session) -> tuple[str, dict[str, Any]]:
    """Milliseconds per step of one card, for every combination of settings; the first, the defaults, must work."""
    steps, rounds = steps_and_rounds(session)
    measured: list[dict[str, Any]] = []
    for number, settings in enumerate(combinations(session)):
        overrides = {"device_target": session.target, "device_num": 1, "pretrained": None, **settings}
        if settings["amp_level"] == "bf16":
            overrides.update(is_dynamic_loss_scale=False, loss_scale=1)
        row: dict[str, Any] = {"settings": settings}
        try:
            row.update(run_task(session, "step_time:measure", f"step_{number}", config=session.config,
                                overrides=overrides, steps=steps, rounds=rounds))  # fmt: skip
            row["error"] = "" if row["finite"] else "the loss is not finite"
        except RungFailed as failure:
            row["error"] = str(failure)
        if row["error"] and not number:
            raise RungFailed(f"{as_words(settings)}: {row['error']}", measured=[row])
        measured.append(row)
    figures = {"measured": measured}
    fastest = fastest_safe([Measured.of(row) for row in measured], unsafe_settings(session))
    if fastest is None:
        raise RungFailed("no combination of settings is both right and fast enough to be timed", **figures)
    figures["fastest"] = fastest.settings
    failed = sum(bool(row["error"]) for row in measured)
    note = (
        f"{len(measured) - failed} of {len(measured)} combinations run; fastest {fastest.ms_per_step:.1f} ms, "
        f"{fastest.images_per_second:.1f} images/s with {as_words(fastest.settings)}; "
        f"defaults {measured[0]['ms_per_step']:.1f} ms"
    )
    return note, figures


def unsafe_settings(session: Session) -> set[tuple[str, str]]:
    """(jit_level, amp_level) whose results were wrong on earlier rungs; amp_level "" means all of them."""
    wrong = {(key.split()[0], key.split()[1]) for key in session.figure("logits", "wrong", {})}
    return wrong | {(level, "") for level in session.figure("gradients", "wrong", {})}


def as_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def all_cards(session: Session) -> tuple[str, dict[str, Any]]:
    """The step on all cards together, in the fastest safe settings: scaling, and the all-reduce by itself."""
    settings = session.figure("one card", "fastest", {"amp_level": "O0"})
    folder = (session.folder / "all_cards").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    steps, rounds = steps_and_rounds(session)
    keys = {**to_flat_dict(load_config(session.config)), **settings}
    if settings.get("amp_level") == "bf16":
        keys.update(is_dynamic_loss_scale=False, loss_scale=1)
    keys.update(device_target=session.target, device_num=session.devices, train_url=str(folder), data_url=str(folder),
                log_steps=steps, save_steps=rounds, pretrained=None, resume=None)  # fmt: skip
    (folder / "config.json").write_text(json.dumps(keys), encoding="utf-8")  # JSON is YAML
    result_file, log = folder / "all_cards.json", folder / "log.txt"
    result_file.unlink(missing_ok=True)
    script = REPOSITORY / "tools" / "ascend_acceptance" / "all_cards.py"
    ended = run_command([sys.executable, str(script), "--config", str(folder / "config.json")], log, folder)
    found = read_result(ended, log, result_file)
    if not found["finite"] or not found["ranks_agree"]:
        what = "ranks disagree about the loss" if found["finite"] else "the loss is not finite"
        raise RungFailed(f"{what}: {last_line(log)}", **found)
    alone = [row for row in session.figure("one card", "measured", []) if row["settings"] == settings]
    note = f"{found['world_size']} cards: {found['ms_per_step']:.1f} ms, {found['images_per_second']:.1f} images/s"
    if alone:
        found["scaling"] = found["images_per_second"] / (found["world_size"] * alone[0]["images_per_second"])
        note += f", {100 * found['scaling']:.0f} % of {found['world_size']} single cards"
    return f"{note}; all-reduce alone {found['all_reduce_ms']:.1f} ms", {**found, "settings": settings}


def data(session: Session) -> tuple[str, dict[str, Any]]:
    """Pictures per second that the host prepares for one card, beside those that the cards take."""
    folder, whose = session.data, "DATA"
    if folder is None:
        small = session.target != "Ascend"
        folder, whose = str(session.folder / "pictures"), "synthetic pictures"
        write_pictures(Path(folder), 64 if small else 512, (64, 64) if small else (500, 375))
    found = run_task(session, "pipeline:measure", "data", config=session.config, data=folder,
                     batches=8 if session.quick else 30)  # fmt: skip
    taken = session.figure("all cards", "images_per_second") or session.figure("one card", "images_per_second", 0.0)
    cards = session.figure("all cards", "world_size", 1)
    note = f"{whose}: one process prepares {found['images_per_second']:.0f} images/s with {found['workers']} workers"
    if taken:
        found["share_of_step"] = taken / cards / found["images_per_second"]
        note += f"; a card takes {taken / cards:.0f}, so data fills {100 * found['share_of_step']:.0f} % of a step"
        if found["share_of_step"] > 1:
            note += ": DATA IS THE BOTTLENECK, see num_parallel_workers and worker_processes"
    return f"{note} ({os.cpu_count()} processors)", found
