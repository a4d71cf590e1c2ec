#!/usr/bin/env python3
"""Makes frame.json: frames with fixed nonces, built after docs/ciphertext.md.

kmsgate's own code has no part in it, so that frame.json is evidence from outside. The derivation is
that of tests/interop/open_frame.py. Run it in this directory; the output is always the same.
"""

import base64
import hashlib
import json
import pathlib
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "interop"))
from open_frame import derive, message_key  # noqa: E402

FIRST = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"
SECOND = "bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e"

CASES = [
    ("one byte", FIRST, 1, "", b"x"),
    ("hello world", FIRST, 1, "", b"hello world"),
    ("hello world with data", FIRST, 1, "tenant=7", b"hello world"),
    ("hello world, second version", FIRST, 2, "", b"hello world"),
    ("hello world, another key", SECOND, 1, "", b"hello world"),
    ("15 bytes", FIRST, 1, "", bytes(range(15))),
    ("16 bytes", FIRST, 1, "", bytes(range(16))),
    ("17 bytes", FIRST, 2, "tenant=7", bytes(range(17))),
    ("text that is not ASCII", FIRST, 1, "部门=财务", "你好，世界".encode()),
    ("the longest data", SECOND, 0x01020304, "a" * 128, b"hello world"),
    ("the longest plaintext", FIRST, 1, "tenant=7", bytes(i % 256 for i in range(4096))),
]


def main():
    vectors = []
    for name, key_id, version, aad, plaintext in CASES:
        # Any fixed values would do; these differ from case to case.
        material = hashlib.sha256(b"material of " + key_id.encode()).digest()
        nonce = hashlib.sha256(b"nonce of " + name.encode()).digest()[:24]
        number = version.to_bytes(4, "big")
        key, commitment = derive(material, 1, key_id.encode(), number)
        head = b"\3\0\1" + bytes([bool(aad)]) + number + key_id.encode() + bytes(8)
        before = head + commitment + nonce
        padding = 16 - len(plaintext) % 16
        padded = plaintext + bytes([padding] * padding)
        cipher = AESGCM(message_key(key, nonce[:12]))
        frame = before + cipher.encrypt(nonce[12:], padded, before + aad.encode())
        vectors.append({
            "name": name,
            "material": material.hex(),
            "key_id": key_id,
            "version": version,
            "aad": aad,
            "plaintext": plaintext.hex(),
            "nonce": nonce.hex(),
            "encryption_key": key.hex(),
            "commitment": commitment.hex(),
            "frame": base64.b64encode(frame).decode(),
        })
    document = {"made_by": "make_frame_vectors.py", "vectors": vectors}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    pathlib.Path("frame.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
