"""List the providers; a new one is one line here.

Pure.
"""

from __future__ import annotations

from app.providers import anthropic
from app.providers.base import Provider

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (anthropic.PROVIDER,)}
