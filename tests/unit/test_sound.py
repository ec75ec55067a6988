"""Sound packets: their samples for each codec, the meaning of AAC configurations, and packets of silence beside real ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from media import flv, sound
from tests import flv_source

LC_44100_MONO = bytes.fromhex("af001208")
PACKET = b"\xaf\x01\x21\x10"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("1210", (1_024, 44_100)),
        ("1208", (1_024, 44_100)),
        ("120856e500", (1_024, 44_100)),
        ("1190", (1_024, 48_000)),
        ("1214", (960, 44_100)),
        ("2b920800", (1_024, 22_050)),  # HE-AAC, explicit
        ("139056e5a0", (1_024, 22_050)),  # HE-AAC, in the extension
        ("eb8a0800", (1_024, 22_050)),  # HE-AAC v2
        ("1780232810", (1_024, 18_000)),  # a rate without an index
    ],
)
def test_an_aac_packet_lasts_as_its_configuration_says(config: str, expected: tuple[int, int]) -> None:
    """Samples and rate are the core's, whether SBR is stated or not."""
    assert sound.packet_samples(PACKET, b"\xaf\x00" + bytes.fromhex(config)) == expected
    assert sound.packet_samples(b"\x91mp4a\x21\x10", b"\x90mp4a" + bytes.fromhex(config)) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x2f\xff\xfb\x90\x64" + bytes(413), (1_152, 44_100)),
        (b"\x2f\xff\xf3\x40\xc4" + bytes(140), (576, 22_050)),
        (b"\x91.mp3\xff\xfb\x90\x64" + bytes(413) + b"\xff\xfb\x90\x64" + bytes(413), (2_304, 44_100)),
        (b"\x91Opus\xfc\xff", (960, 48_000)),
        (b"\x91Opus\xfd\xff", (1_920, 48_000)),
        (b"\x91Opus\x0b\x03\xff", (2_880, 48_000)),
        (b"\x7f" + bytes(320), (160, 8_000)),
        (b"\x82" + bytes(160), (160, 8_000)),
        (b"\x3f" + bytes(400), (100, 44_100)),
        (b"\x00" + bytes(110), (110, 5_512)),
        (b"\xb2" + bytes(40), (320, 16_000)),
        (b"\x91fLaC\xff\xf8", None),
        (b"\xd2\x01\xfc", None),
        (b"\x91Opus\x03\x3f", None),  # more than an Opus packet may last
        (b"\xaf\x00\x12\x10", None),
    ],
)
def test_a_packet_of_another_codec_says_how_long_it_lasts(payload: bytes, expected: tuple[int, int] | None) -> None:
    """MP3 frames, Opus frames and bytes of PCM are counted; a codec of unknown length gives None."""
    assert sound.packet_samples(payload, LC_44100_MONO) == expected


def test_an_aac_packet_without_a_configuration_is_unknown() -> None:
    """Neither a missing, a torn nor another codec's header gives a duration."""
    for header in (None, b"", b"\xaf\x00", b"\xaf\x00\x12", b"\xaf\x00\x17\xff\xff", b"\x90Opus\x12\x08"):
        assert sound.packet_samples(PACKET, header) is None


def test_configurations_that_say_the_same_are_the_same_sound() -> None:
    """The extension that denies SBR changes nothing; rate, channels, SBR and unparsed bytes do."""
    assert sound.same_sound(bytes.fromhex("af001208"), bytes.fromhex("af00120856e500"))
    assert sound.same_sound(bytes.fromhex("af001208"), b"\x90mp4a" + bytes.fromhex("1208"))
    assert sound.same_sound(bytes.fromhex("af002b920800"), bytes.fromhex("af00139056e5a0"))
    for other in ("af001210", "af001188", "af00120856e5a0", "af0017ff", "af00", "1208"):
        assert not sound.same_sound(LC_44100_MONO, bytes.fromhex(other))
    assert not sound.same_sound(b"\xaf\x00", b"\xaf\x00\x01")


@example(b"\xaf\x00\xf9\x07\xff\xff", b"\xaf\x01")
@example(b"\x90mp4a", b"\x91mp4a")
@given(
    st.one_of(
        st.binary(max_size=40), st.builds(lambda a, b: a + b, st.sampled_from([b"\xaf\x00", b"\x90mp4a"]), st.binary(max_size=40))
    ),
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda a, b: a + b, st.sampled_from([b"\xaf\x01", b"\x91mp4a", b"\x91.mp3\xff", b"\x2f\xff"]), st.binary(max_size=40)
        ),
    ),
)
def test_no_bytes_raise(header: bytes, payload: bytes) -> None:
    """Whatever a server sends, the answer is None or a sensible number."""
    found = sound.packet_samples(payload, header)
    assert found is None or (0 <= found[0] <= 1_152 * 40 and 0 < found[1] <= 192_000)
    assert sound.same_sound(header, header)
    sound.same_sound(header, payload)
    assert sound.silent_packet(header) is None or sound.aac_config(header) is not None


@pytest.mark.parametrize("config", ["1214", "2b920800", "120856e5a0", "0a10", "1200", "178023"])
def test_silence_that_only_an_encoder_can_make_is_none(config: str) -> None:
    """960 samples, SBR, AAC Main, a layout of its own and a torn configuration have no silent packet."""
    assert sound.silent_packet(b"\xaf\x00" + bytes.fromhex(config)) is None


@pytest.mark.parametrize(
    ("rate", "layout"),
    [(44_100, "mono"), (48_000, "stereo"), (16_000, "stereo"), (48_000, "3.0"), (44_100, "5.1")],
)
def test_silent_packets_decode_between_real_ones(tmp_path: Path, rate: int, layout: str) -> None:
    """Silence inside, before and behind encoded sound decodes without a warning, to 1,024 silent samples a packet."""
    source = tmp_path / "source.flv"
    tone = f"sine=frequency=1000:r={rate}:d=1,aformat=channel_layouts={layout}"
    made = [flv_source.FFMPEG, "-loglevel", "error", "-f", "lavfi", "-i", tone, "-c:a", "aac", "-f", "flv", str(source)]
    subprocess.run(made, check=True)
    tags = flv_source.read(source)
    header, packets = next(tag for tag in tags if tag.is_sequence_header), [tag for tag in tags if tag.is_media]
    config = sound.aac_config(header.payload)
    assert config is not None
    silent = sound.silent_packet(header.payload)
    assert silent is not None
    payloads = [silent] * 5 + [tag.payload for tag in packets[:20]] + [silent] * 20 + [tag.payload for tag in packets[20:]]
    tags = (
        header,
        *(flv_source.configuration(flv.AUDIO, payload, index * 1_024_000 // rate) for index, payload in enumerate(payloads)),
    )
    mixed = flv_source.write(tmp_path / "mixed.flv", tags, video=False)
    done = subprocess.run(
        [flv_source.FFMPEG, "-loglevel", "warning", "-i", str(mixed), "-f", "s16le", "-"], check=True, capture_output=True
    )
    assert done.stderr == b""
    frame = 1_024 * config.channels * 2
    assert len(done.stdout) == len(payloads) * frame
    assert not any(done.stdout[27 * frame : 44 * frame])
    assert any(done.stdout[10 * frame : 20 * frame])
