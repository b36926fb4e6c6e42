"""kvist in Hugging Face transformers (5.16 or newer).

from kvist.hf import KvistCache
cache = KvistCache.for_model(model, select="boxed", budget=1024)
model.generate(**inputs, past_key_values=cache)
print(cache.report())
"""

from ._attention import register
from ._cache import KvistCache, KvistLayer
from ._calibrate import calibrate
from ._dump import dump
from ._report import LayerReport, Report

register()

__all__ = ["KvistCache", "KvistLayer", "LayerReport", "Report", "calibrate", "dump"]
