#!/usr/bin/env python3
"""Opens ciphertext frames, written from docs/ciphertext.md alone: none of kmsgate's code is in it.

    open_frame.py --vectors FILE
    open_frame.py --material HEX --frame BASE64 [--aad TEXT]

The first checks every vector of a file, and that each is refused with one bit flipped; the second
prints the plaintext. Needs the package `cryptography`.
"""

import argparse
import base64
import hmac
import json
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Refused(Exception):
    """The frame does not open."""


def open_frame(material, frame, aad):
    """The plaintext of `frame` under a key's 32 bytes of material; `aad` as bytes, empty for none."""
    if len(frame) % 16 != 12 or not 140 <= len(frame) <= 4236:
        raise Refused("length")
    form, suite, flags, version = frame[0:2], frame[2], frame[3], frame[4:8]
    key_id, reserved, commitment, nonce = frame[8:44], frame[44:52], frame[52:84], frame[84:108]
    if form != b"\3\0" or suite != 1 or flags != bool(aad) or not any(version) or any(reserved):
        raise Refused("head")
    key, expected = derive(material, suite, key_id, version)
    if not hmac.compare_digest(commitment, expected):
        raise Refused("commitment")
    try:
        cipher = AESGCM(message_key(key, nonce[:12]))
        padded = cipher.decrypt(nonce[12:], frame[108:], frame[:108] + aad)
    except InvalidTag:
        raise Refused("tag") from None
    count = padded[-1]
    plaintext = padded[: len(padded) - count]
    if not 1 <= count <= 16 or padded != plaintext + bytes([count] * count) or not plaintext:
        raise Refused("padding")
    return plaintext


def derive(material, suite, key_id, version):
    """The encryption key and the commitment of one key version."""
    info = b"kmsgate frame v3" + bytes([suite]) + key_id + version
    both = HKDF(SHA256(), 64, b"", info).derive(material)
    return both[:32], both[32:]


def message_key(key, half_nonce):
    """XAES-256-GCM's key for one message: c2sp.org/XAES-256-GCM, steps 1 to 5."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    doubled = int.from_bytes(aes.update(bytes(16)), "big") << 1
    k1 = doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled
    blocks = [b"\0" + bytes([counter]) + b"X\0" + half_nonce for counter in (1, 2)]
    return b"".join(aes.update((int.from_bytes(m, "big") ^ k1).to_bytes(16, "big")) for m in blocks)


def check(file):
    vectors = json.load(open(file))["vectors"]
    for vector in vectors:
        material, frame = bytes.fromhex(vector["material"]), base64.b64decode(vector["frame"])
        aad, plaintext = vector["aad"].encode(), bytes.fromhex(vector["plaintext"])
        assert open_frame(material, frame, aad) == plaintext, vector["name"]
        for bit in range(0, len(frame) * 8, 1 + len(frame) // 40):
            altered = bytearray(frame)
            altered[bit // 8] ^= 1 << bit % 8
            try:
                open_frame(material, bytes(altered), aad)
            except Refused:
                continue
            sys.exit(f"{vector['name']}: opens with bit {bit} flipped")
    print(f"ok open_frame: {len(vectors)} frames open, and none with a bit flipped")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors")
    parser.add_argument("--material", type=bytes.fromhex)
    parser.add_argument("--frame", type=base64.b64decode)
    parser.add_argument("--aad", default="")
    options = parser.parse_args()
    if options.vectors:
        check(options.vectors)
    elif options.material and options.frame:
        try:
            plaintext = open_frame(options.material, options.frame, options.aad.encode())
        except Refused as why:
            sys.exit(f"refused: {why}")
        sys.stdout.buffer.write(plaintext + b"\n")
    else:
        parser.error("give --vectors, or --material and --frame")


if __name__ == "__main__":
    main()
