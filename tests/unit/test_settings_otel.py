"""settings_otel: what is wrong with the standard variables, before anything is started.

Pure.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from app import settings_otel


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "", "OTEL_TRACES_SAMPLER": "", "OTEL_EXPORTER_OTLP_PROTOCOL": " "},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
        {"OTEL_TRACES_SAMPLER": "Parentbased_Always_Off", "OTEL_TRACES_SAMPLER_ARG": "ignored"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_EXPORTER_OTLP_HEADERS": "a=b,c=d=="},
        {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "OTEL_BSP_MAX_QUEUE_SIZE": "1000"},
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_BSP_MAX_QUEUE_SIZE": "10"},
        {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_nothing_wrong(environ: dict[str, str]) -> None:
    assert list(settings_otel.faults(environ)) == []


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER=zipkin: allowed is one of otlp, console, none.",
        ),
        ({"OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER=some: allowed is one of always_on"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "OTEL_TRACES_SAMPLER_ARG=: allowed is a number from 0 to 1"),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "25%"},
            "OTEL_TRACES_SAMPLER_ARG=25%: allowed is a number from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            "OTEL_TRACES_SAMPLER_ARG=nan: allowed is a number from 0 to 1",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: allowed is http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json: allowed is http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "br"}, "OTEL_EXPORTER_OTLP_COMPRESSION=br: allowed is one of none"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, "OTEL_EXPORTER_OTLP_TIMEOUT=0: allowed is seconds"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT=10s: allowed is seconds"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_MAX_QUEUE_SIZE=0: allowed is a whole number"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "5.5"}, "OTEL_BSP_SCHEDULE_DELAY=5.5: allowed is a whole number"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: is more than"),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such: allowed is a file",
        ),
    ],
)
def test_each_fault_names_variable_value_and_what_is_allowed(environ: dict[str, str], fault: str) -> None:
    (found,) = settings_otel.faults(environ)
    assert found.startswith(fault)
    assert found.endswith(".")


@pytest.mark.parametrize("url", ["4318", "localhost:4318", "ftp://x", "http://", "http://x:99999", "http://[x"])
@pytest.mark.parametrize("start", ["OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"])
def test_endpoints_that_are_none_are_told_but_not_shown(start: str, url: str) -> None:
    assert list(settings_otel.faults({f"{start}ENDPOINT": url})) == [
        f"{start}ENDPOINT=[hidden]: allowed is an http:// or https:// URL with a host."
    ]


def test_headers_are_never_shown() -> None:
    (found,) = settings_otel.faults({"OTEL_EXPORTER_OTLP_HEADERS": "api-key: hunter2"})
    assert found.startswith("OTEL_EXPORTER_OTLP_HEADERS=[hidden]")


def test_all_faults_at_once() -> None:
    environ = {
        "OTEL_TRACES_SAMPLER": "x",
        "OTEL_BSP_SCHEDULE_DELAY": "x",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "x",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "x",
    }
    assert len(list(settings_otel.faults(environ))) == 4


def test_a_certificate_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("x")
    assert list(settings_otel.faults({"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": str(path)})) == []


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({}, ""),
        ({"OTEL_SDK_DISABLED": "false"}, ""),
        ({"OTEL_SDK_DISABLED": " True "}, "OTEL_SDK_DISABLED=true"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER=none"),
        ({"OTEL_TRACES_EXPORTER": "console"}, ""),
    ],
)
def test_whether_there_are_to_be_spans(environ: dict[str, str], why: str) -> None:
    assert settings_otel.off(environ) == why
