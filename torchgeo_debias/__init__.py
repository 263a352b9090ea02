"""Map the rare things in remote-sensing imagery with de-biased LoRA."""

from __future__ import annotations

__version__ = "0.1.0"
