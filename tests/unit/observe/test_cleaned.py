"""observe/cleaned: what callers name is shown without secrets, and looked at once.

Pure.
"""

from __future__ import annotations

from app.observe.cleaned import Cleaned
from app.observe.redact import Redactor


def test_secrets_in_a_model_or_path_are_not_shown() -> None:
    shown = Cleaned(Redactor(["gateway-key-of-a-caller"]).text)
    assert shown("claude-sonnet-5") == "claude-sonnet-5"
    assert shown("/v1/messages") == "/v1/messages"
    for secret in ("gateway-key-of-a-caller", "sk-ant-api03-MODELSECRET123456"):
        for text in (secret, f"/v1/files/{secret}/content"):
            assert secret not in shown(text)
            assert secret not in shown(text)


def test_texts_are_looked_at_once_and_not_kept_for_ever() -> None:
    seen: list[str] = []

    def redact(text: str) -> str:
        seen.append(text)
        return text.upper()

    shown = Cleaned(redact)
    assert [shown("a"), shown("a"), len(seen)] == ["A", "A", 1]
    long = "b" * 300
    assert [shown(long), shown(long), len(seen)] == [long.upper()] * 2 + [3]
    for number in range(3000):
        shown(str(number))
    assert len(shown._known) <= 1024
