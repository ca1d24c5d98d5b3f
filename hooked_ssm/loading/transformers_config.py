"""A transformers config as `Settings`: its own class fills in what the file leaves out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from hooked_ssm.loading.plan import Settings


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The fields of the model's own config class. What that class does not know, transformers ignores too."""
    model_type = values["model_type"]
    cls = CONFIG_MAPPING[model_type]
    config, default = cls.from_dict(dict(values)), cls()
    shared = {field.name for field in dataclasses.fields(PretrainedConfig)}
    own = {field.name for field in dataclasses.fields(cls)} - shared | {"tie_word_embeddings"}
    return Settings(
        {name: getattr(config, name) for name in own},
        {name: getattr(default, name) for name in own},
        f"transformers {model_type}",
    )
