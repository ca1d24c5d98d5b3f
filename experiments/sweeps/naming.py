"""The name of a run, from its config alone: grids that ask for the same run share one folder.

    attention-d64-lr0.001-seed0-1f0c6d2a9b

The last part is a hash of the config without what is at its default, so that an option added later does not
rename the runs that do without it.
"""

import dataclasses
import hashlib
import json
from typing import Any

from experiments.runs import TrainConfig
from hooked_ssm import HookedSSMConfig
from hooked_ssm.config import MixerConfig
from tasks import Task

DERIVED = ("attn_only", "uses_rms_norm", "final_rms")  # what HookedSSMConfig sets from its other fields


def essentials(cfg: TrainConfig) -> dict[str, Any]:
    """The config as JSON without what is at its default; `TrainConfig.from_json` reads it."""
    values = without_defaults(cfg.to_json(), TrainConfig)
    values["task"] = of_task(cfg.task)
    if cfg.eval_task is not None:
        values["eval_task"] = of_task(cfg.eval_task)
    values["model"] = without_defaults(values["model"], HookedSSMConfig)
    values["model"] = {name: value for name, value in values["model"].items() if name not in DERIVED}
    values["model"]["mixers"] = [of_mixer(mixer) for mixer in cfg.model.mixer_list]
    return json.loads(json.dumps(values))


def of_task(task: Task) -> dict[str, Any]:
    return {"task": task.name} | without_defaults(task.to_dict(), type(task))


def of_mixer(mixer: MixerConfig) -> dict[str, Any]:
    return {"name": mixer.name} | without_defaults(mixer.to_dict(), type(mixer))


def without_defaults(values: dict[str, Any], cls: Any) -> dict[str, Any]:
    """The entries that name a field of the dataclass and differ from its default."""
    kept = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in values and str(values[field.name]) != str(default).removeprefix("torch."):
            kept[field.name] = values[field.name]
    return kept


def run_name(cfg: TrainConfig) -> str:
    """The name of the run's folder."""
    text = json.dumps(essentials(cfg), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    mixers = "+".join(dict.fromkeys(mixer.name for mixer in cfg.model.mixer_list))
    return f"{mixers}-d{cfg.model.d_model}-lr{cfg.lr:g}-seed{cfg.seed}-{digest}"
